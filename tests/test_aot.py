"""The step, compiled by the compilers of accelerators that are not there."""

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest
from support import ROOT
from support import run_program
from support import tiny_config

from ddpm.run import config as config_lib
from ddpm.runtime import targets
from ddpm.training import aot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec('libtpu'),
        reason="needs the compilers: pip install -e '.[aot]'",
    ),
]
# A process loads one kind of compiler: here that of TPUs.
TPU = targets.parse('v5e:2x2')


@pytest.mark.parametrize(
    'name, target, all_reduces',
    [
        ('mnist', 'v5e:2x2', '1 (3.0 MB)'),
        ('mnist', 'h100', '1 (3.0 MB)'),
        ('cifar10', 'h100', '1 (143.0 MB)'),
    ],
)
def test_the_step_is_right_for_an_accelerator(name, target, all_reduces):
  done = run_program(
      'ddpm.main', f'--config=configs/{name}.py', '--dry_run',
      f'--compile_for={target}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  said = dict(
      line.split(': ') for line in done.stdout.splitlines() if ': ' in line
  )
  assert said['all-reduces'] == all_reduces
  assert said['not updated in place'] == said['on the host'] == 'nothing'
  milliseconds = float(said['step'].split()[0])
  assert float(said['images/s']) == pytest.approx(
      int(said['devices'].split()[0]) * int(said['per-replica batch'])
      / (milliseconds / 1e3), rel=2e-2,
  )  # fmt: skip
  peak, temporary = map(float, re.findall(r'(\S+) GiB', said['memory']))
  assert 0.02 <= peak < 8 and temporary < peak
  flops = float(said['per-replica step'].split()[0])
  images = int(said['per-replica batch'])
  # GFLOP per image, as libtpu counts them.
  expected = {'mnist': 0.26, 'cifar10': 33}[name]
  assert flops / images == pytest.approx(expected, rel=0.1)


def test_a_tpu_refuses_what_cannot_fit():
  with pytest.raises(aot.TooLarge):
    aot.compile_step(tiny_config(**{'train.batch_size': 2**23}), TPU)


def test_a_gpu_refuses_what_cannot_fit():
  # A GPU with little memory: of the tiny network, no batch that XLA compiles
  # would be too large for a real one.
  code = (
      'from support import tiny_config\n'
      'from ddpm.runtime import targets\nfrom ddpm.training import aot\n'
      'targets.Target.memory = 2**18\n'
      'try:\n  aot.compile_step(tiny_config(), targets.parse("h100:1"))\n'
      'except aot.TooLarge as e:\n  print("too large:", e)\n'
  )
  done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT / 'tests',
      capture_output=True,
      text=True,
      check=False,
  )
  assert re.search(r'too large: 0.0 GiB, of 0.0 GiB', done.stdout), done.stderr


@pytest.mark.parametrize(
    # lsun's network is that of celebahq256.
    'name', ['mnist5k', 'cifar10_edm', 'cifar10_iddpm', 'celebahq256']
)
def test_every_config_lowers(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  config_lib.validate(config)
  lowered, names = aot.lower(config, aot._devices(TPU), 'tpu')
  text = lowered.as_text()
  assert text.count('stablehlo.all_reduce') == 1
  assert not re.search(r'\bf64\b', text)
  assert {'params', 'adam_v', 'step'} <= set(names)
