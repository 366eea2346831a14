"""Untidy machines and command lines: a run works, or one line says why not."""

import json
import os
import subprocess
import sys

import pytest
from support import error_line
from support import metrics
from support import ROOT
from support import run_fork
from support import run_program
from support import TINY_WITHOUT_XLA


def config_file(tmp_path, body, name='mine.py'):
  path = tmp_path / name
  path.write_text(
      'from configs import mnist5k\n\n\ndef get_config():\n'
      f'  c = mnist5k.get_config()\n  {body}\n  return c\n'
  )
  return path


# A line of a config file, and what the one line that refuses it says.
_WRONG_FILES = {
    'unknown': ("c.notes = 'x'", 'config.notes is no setting'),
    'nearest': (
        'c.optimizer.learning_rat = 1e-3',
        'no setting: did you mean config.optimizer.learning_rate?',
    ),
    'missing': ('del c.model.dropout', 'config.model.dropout is missing'),
    'type': ("c.train.num_steps = 'x'", 'mine.py, line 6: TypeError: '),
    'name': ('c.seed = sead', "mine.py, line 6: NameError: name 'sead'"),
    'syntax': ('c.seed = = 1', 'mine.py, line 6: SyntaxError: invalid syntax'),
    'file': ("open('/none')", "No such file or directory: '/none'"),
    'none': ('return', 'the config is None, expected a ConfigDict'),
    'dict': ('return {}', 'the config is {}, expected a ConfigDict'),
    'other': (
        'from ml_collections import ConfigDict; return ConfigDict({"a": 1})',
        'config.a is no setting',
    ),
    'infinite': (
        'c.sample.rho = float("inf")', 'config.sample.rho is inf, expected',
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    'body, message', _WRONG_FILES.values(), ids=_WRONG_FILES
)
def test_a_config_file_that_is_wrong(tmp_path, body, message):
  path = config_file(tmp_path, body)
  done = run_fork(
      'ddpm.main', f'--config={path}', f'--workdir={tmp_path / "w"}'
  )
  # ml_collections warns of None.
  assert message in error_line(done, after_log=body == 'return')
  assert not (tmp_path / 'w').exists()


def test_a_config_file_without_get_config_or_with_too_much(tmp_path):
  path = tmp_path / 'empty.py'
  path.write_text('')
  workdir = f'--workdir={tmp_path / "w"}'
  line = error_line(run_fork('ddpm.main', f'--config={path}', workdir))
  assert "--config: the file has no attribute 'get_config'" in line
  line = error_line(
      run_fork('ddpm.main', f'--config={ROOT}/configs/mnist5k.py:foo', workdir)
  )
  assert '--config: get_config() takes 0 positional arguments' in line


def test_the_last_of_a_setting_counts():
  done = run_fork(
      'ddpm.main', *TINY_WITHOUT_XLA, '--dry_run',
      '--config.ema.decays=(0.9, 0.99)', '--config.ema.decays', '(2.0,)',
  )  # fmt: skip
  assert 'config.ema.decays has 2.0' in error_line(done)
  done = run_fork(
      'ddpm.main', *TINY_WITHOUT_XLA, '--dry_run',
      '--config.ema.decays=(2.0,)', '--config.ema.decays=(0.9,)',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('flag', ['--help', '--helpfull', '--helpshort'])
def test_help_is_no_error(flag):
  done = run_fork('ddpm.sample', flag)
  assert done.returncode == 0 and '--workdir' in done.stdout


def test_any_path_works(tmp_path):
  """Also one with TensorFlow's wildcards, from another folder."""
  folder = tmp_path / 'r\u00fcns [1] *?\\ x'
  folder.mkdir()
  workdir = 'lr=[1e-3] \u00e9'
  for steps in (2, 4):
    done = subprocess.run(
        [sys.executable, '-m', 'ddpm.main', *TINY_WITHOUT_XLA,
         f'--workdir={workdir}', f'--config.train.num_steps={steps}',
         '--config.train.keep_last=1', '--config.train.keep_every_steps=2'],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
  assert 'resuming at step 2' in done.stderr
  assert [row['step'] for row in metrics(folder / workdir)] == [1, 2, 3, 4]
  checkpoints = folder / workdir / 'checkpoints'
  found = sorted(p.name for p in checkpoints.glob('**/*.index'))
  assert found == ['ckpt-2.index', 'ckpt-4.index', 'ckpt-4.index']
  out = folder / 'out [2]'
  for _ in range(2):  # The second finds all done.
    done = run_program(
        'ddpm.sample', f'--workdir={folder / workdir}', '--seeds=0-3',
        f'--outdir={out}', '--checkpoint=2',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
  assert (out / 'grid.png').stat().st_size
  # And is found after a move.
  moved = (folder / workdir).rename(tmp_path / 'moved')
  done = run_program('ddpm.sample', f'--workdir={moved}', f'--outdir={out}/2')
  assert done.returncode == 0, done.stderr


def test_no_stream_and_no_setting_of_others_is_needed(tmp_path):
  """Closed streams, Keras' own settings, an empty TF_CONFIG."""
  home = tmp_path / 'home'
  (home / '.keras').mkdir(parents=True)
  (home / '.keras' / 'keras.json').write_text(
      json.dumps({'image_data_format': 'channels_first', 'floatx': 'half'})
  )
  command = ' '.join([
      f"'{sys.executable}' -m ddpm.main", *map("'{}'".format, TINY_WITHOUT_XLA),
      f"--workdir='{tmp_path}/w' --config.train.num_steps=2 <&- >&- 2>&-",
  ])  # fmt: skip
  done = subprocess.run(
      ['bash', '-c', command], cwd=ROOT, check=False,
      env=os.environ | {'HOME': str(home), 'TF_CONFIG': ''},
  )  # fmt: skip
  assert done.returncode == 0
  assert (tmp_path / 'w' / 'grid.png').exists()


def test_a_python_without_tensorflow_is_named(tmp_path):
  done = subprocess.run(
      [sys.executable, '-I', '-S', '-c',
       'import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv = ["-m"];'
       ' import ddpm', str(ROOT)],
      cwd=tmp_path, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert f'TensorFlow is not installed for {sys.executable}' in error_line(done)


def test_a_checkout_called_ddpm_does_not_hide_the_package(tmp_path):
  """Nor does any other folder of that name."""
  (tmp_path / 'ddpm').mkdir()
  done = subprocess.run(
      [sys.executable, '-m', 'ddpm.sample', '--help'],
      cwd=tmp_path, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error():
  done = subprocess.run(
      ['bash', '-o', 'pipefail', '-c',
       f"'{sys.executable}' -m ddpm.sample --helpfull | head -1"],
      cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert not done.stderr, done.stderr


def test_a_folder_of_samples_is_no_workdir(tmp_path):
  (tmp_path / 'manifest.json').write_text('{}')
  done = run_fork('ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={tmp_path}')
  assert 'holds images of ddpm.sample' in error_line(done)
  assert len(list(tmp_path.iterdir())) == 1


def test_fewer_steps_than_there_are(tmp_path):
  args = ['ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={tmp_path}']
  assert run_fork(*args, '--config.train.num_steps=4').returncode == 0
  grid = tmp_path / 'grid.png'
  before = grid.stat().st_mtime_ns
  done = run_fork(*args, '--config.train.num_steps=2')
  assert done.returncode == 0
  assert 'is at step 4, and config.train.num_steps is 2' in done.stderr
  assert grid.stat().st_mtime_ns == before
