"""The cache folder, and XLA's entries in it."""

import os
import pathlib
import subprocess
import sys

import pytest
from support import run_program
from support import TINY

from ddpm.runtime import cache

# A program of one function that XLA compiles.
_COMPILE = """
import sys
from ddpm.runtime import program

def main():
  import tensorflow as tf
  f = tf.function(lambda x: tf.sin(x) * 2.0, jit_compile=True)
  print('sum', f(tf.zeros([8, 8])).numpy().sum())

program.start(main, lambda: None)
"""


@pytest.fixture(autouse=True)
def forget():
  cache.folder.cache_clear()
  yield
  cache.folder.cache_clear()


@pytest.mark.parametrize('xdg', ['', 'relative', None])
def test_the_folder_is_in_the_home_by_default(tmp_path, monkeypatch, xdg):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  if xdg is not None:
    monkeypatch.setenv('XDG_CACHE_HOME', xdg)
  assert cache.folder() == f'{tmp_path}/.cache/ddpm'


def test_the_folder_is_where_xdg_says(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert cache.folder() == f'{tmp_path}/ddpm'


@pytest.mark.parametrize('where', ['/dev/null', '/proc/nothing'])
def test_a_folder_that_cannot_be_written_is_replaced(monkeypatch, where):
  monkeypatch.setenv('XDG_CACHE_HOME', where)
  assert os.access(cache.folder(), os.W_OK)
  assert 'ddpm-' in cache.folder()


def compile_in(home):
  return subprocess.run(
      [sys.executable, '-c', _COMPILE],
      env={'PATH': os.environ['PATH'], 'XDG_CACHE_HOME': str(home)},
      capture_output=True,
      text=True,
      check=False,
  )


def test_an_entry_that_is_damaged_is_compiled_again(tmp_path):
  home = tmp_path / 'a "home" [1] é'
  home.mkdir()
  done = compile_in(home)
  assert (done.returncode, done.stdout) == (0, 'sum 0.0\n'), done.stderr
  (entry,) = pathlib.Path(home).glob('ddpm/xla/*/*.pb')
  whole = entry.read_bytes()
  for damaged in (b'', whole[: len(whole) // 2]):
    entry.write_bytes(damaged)
    done = compile_in(home)
    assert (done.returncode, done.stdout) == (0, 'sum 0.0\n'), done.stderr
    assert "XLA's cache is damaged" in done.stderr
    assert 'Traceback' not in done.stderr and not entry.exists()
    done = compile_in(home)
    assert done.returncode == 0 and done.stderr == '' and entry.exists()


@pytest.mark.slow
def test_one_device_compiles_and_the_others_load(tmp_path):
  """Eight GPUs would else compile the same at once, on the same cores."""
  done = run_program(
      'ddpm.main', *TINY, f'--workdir={tmp_path / "run"}',
      '--config.train.num_steps=1', '--config.distribute.virtual_devices=4',
      XDG_CACHE_HOME=str(tmp_path), TF_CPP_MIN_LOG_LEVEL='0',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  # The gradient, the update and the sampler's step.
  assert len(list(tmp_path.glob('ddpm/xla/*/*'))) == 3
  # TensorFlow reads an entry as text first, and says so.
  loaded = done.stderr.count('text-format tensorflow.XlaSerializedCacheEntry')
  # By three devices of four; the sampler's devices may all have compiled.
  assert 6 <= loaded <= 9
