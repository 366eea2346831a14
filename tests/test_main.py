"""The programs, as users run them: one process each."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support import error_line
from support import metrics
from support import refused
from support import ROOT
from support import run_fork
from support import run_program
from support import tensors
from support import TINY
from support import TINY_WITHOUT_XLA
import tensorflow as tf

from ddpm.runtime import cores
from ddpm.runtime import words


def train(workdir, *args, steps=4, **env):
  done = run_program(
      'ddpm.main', *TINY, f'--workdir={workdir}',
      f'--config.train.num_steps={steps}', *args, **env,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done


def losses(workdir):
  rows = metrics(workdir)
  return [row['step'] for row in rows], np.array([row['loss'] for row in rows])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """4 steps in one go."""
  workdir = tmp_path_factory.mktemp('run')
  return workdir, train(workdir)


def test_a_run_leaves_what_it_promises(run):
  workdir, done = run
  assert {path.name for path in workdir.iterdir()} == {
      'config.json', 'metrics.jsonl', 'checkpoints', 'tensorboard', 'grid.png',
      'lock', 'data.json', 'events.jsonl',
  }  # fmt: skip
  assert losses(workdir)[0] == [1, 2, 3, 4]
  assert (workdir / 'checkpoints' / 'ckpt-4.index').exists()
  # Nothing of TensorFlow's own chatter.
  noise = (
      'oneDNN custom', 'cuda', 'XLA service', 'rebuild TensorFlow', 'Sharding',
  )  # fmt: skip
  assert not [word for word in noise if word in done.stderr]
  assert 'step 4  loss' in done.stderr


def test_2_and_2_resumed_steps_are_4_to_the_bit(run, tmp_path):
  workdir, _ = run
  train(tmp_path, steps=2)
  # How the steps are called, and a profile, change nothing.
  done = train(
      tmp_path, '--config.train.steps_per_loop=3', '--profile=4,4', steps=4
  )
  assert 'resuming at step 2' in done.stderr
  assert list(tmp_path.glob('tensorboard/plugins/profile/*/*.xplane.pb'))
  assert losses(tmp_path)[0] == [1, 2, 3, 4]
  np.testing.assert_array_equal(losses(tmp_path)[1], losses(workdir)[1])
  whole, resumed = tensors(workdir, 4), tensors(tmp_path, 4)
  for name, value in whole.items():
    np.testing.assert_array_equal(resumed[name], value, err_msg=name)


# XLA compiles for each device: for two, which says enough. The first
# all-reduce of eight takes minutes at times, where there are but two cores.
@pytest.mark.parametrize(
    'devices, xla', [(2, True), pytest.param(8, False, marks=pytest.mark.slow)]
)
def test_virtual_devices_follow_one(run, tmp_path, devices, xla):
  done = train(
      tmp_path, '--config.distribute.strategy=mirrored',
      f'--config.distribute.virtual_devices={devices}',
      f'--config.jit_compile={xla}',
  )  # fmt: skip
  assert f'{devices} CPU devices x {8 // devices} images' in done.stderr
  np.testing.assert_allclose(losses(tmp_path)[1], losses(run[0])[1], rtol=1e-4)


def test_gradients_can_be_exchanged_in_bfloat16(run, tmp_path):
  train(
      tmp_path, '--config.distribute.strategy=mirrored',
      '--config.distribute.virtual_devices=2', '--config.jit_compile=false',
      '--config.distribute.all_reduce_dtype=bfloat16',
  )  # fmt: skip
  exact, rounded = losses(run[0])[1], losses(tmp_path)[1]
  # The first loss and all sums of losses are not rounded; the weights are.
  np.testing.assert_allclose(rounded[0], exact[0], rtol=1e-6)
  np.testing.assert_allclose(rounded, exact, rtol=1e-2)
  assert abs(rounded[3] / exact[3] - 1) > 1e-6


@pytest.mark.slow
def test_two_processes_follow_one_and_one_resumes_them(run, tmp_path):
  done = subprocess.run(
      ['bash', ROOT / 'launch/multi_worker.sh', '--local', '2', '--', *TINY,
       f'--workdir={tmp_path}', '--config.train.num_steps=2'],
      env=os.environ | {'PYTHON': sys.executable},
      capture_output=True, text=True, timeout=240, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  train(tmp_path, steps=4)
  assert losses(tmp_path)[0] == [1, 2, 3, 4]
  np.testing.assert_allclose(losses(tmp_path)[1], losses(run[0])[1], rtol=1e-4)


def test_dry_run_writes_nothing_and_prints_sizes(tmp_path):
  done = run_program(
      'ddpm.main', *TINY_WITHOUT_XLA, '--dry_run',
      f'--workdir={tmp_path / "w"}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = dict(line.split(': ', 1) for line in done.stdout.splitlines())
  parameters = int(lines['parameters'])
  # Weights, two moments and an EMA; counters, and losses by quartile.
  assert lines['checkpoint'] == words.size(4 * 4 * parameters + 60)
  assert lines['disk'].startswith('at most ')
  assert '4 checkpoints at once, 0 kept for good' in lines['disk']
  assert lines['disk'].endswith(' 1 grids')
  assert lines['training'] == (
      '1,800 steps, 14,400 images, 2.88 epochs of 5,000'
  )
  assert lines['all-reduce per step'] == 'none'
  assert lines['per-replica batch'] == '8' and lines['replicas'] == '1'
  assert {'devices', 'memory', 'per-replica memory', 'FLOPs per image', 'time',
          'first loss'} < set(lines)  # fmt: skip
  assert not list(tmp_path.iterdir())


def test_advice_is_given_before_training_and_in_a_dry_run(run):
  _, done = run
  # 0.995^4
  said = 'after 4 steps, 98% of the EMA of decay 0.995 (ema.decays) is the'
  assert said in done.stderr
  done = run_fork(
      'ddpm.main', *TINY, '--dry_run', '--topology=1xh100',
      '--config.train.num_steps=4',
  )  # fmt: skip
  assert f'warning: {said}' in done.stdout


def test_a_topology_is_predicted(tmp_path):
  done = run_program(
      'ddpm.main', *TINY, '--dry_run', '--topology=2x4xh100',
      '--config.train.batch_size=32', f'--workdir={tmp_path / "w"}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = dict(line.split(': ', 1) for line in done.stdout.splitlines())
  assert lines['replicas'] == '8' and lines['per-replica batch'] == '4'
  assert 0 < float(lines['efficiency']) < 1
  assert float(lines['images/s']) > 0
  assert 'of 74.5 GiB per device' in lines['memory']
  assert not list(tmp_path.iterdir())


# Arguments that are wrong, and a part of the line that says so.
ERRORS = [
    (['--config.train.batch_sise=4'], 'batch_sise'),
    (['--config.train.batch_size=four'], 'batch_size'),
    (['--config.data.name=tfds:no_such'], "no data set 'no_such'"),
    (['--config.model.image_channels=3'],
     'image_channels is 3, but the images of mnist5k have 1'),
    (['--config.distribute.virtual_devices=3'],
     'train.batch_size is 8, which the 3 replicas do not divide: use 6'),
    (['--config.distribute.strategy=multi_worker'], 'TF_CONFIG'),
    (['--config.distribute.strategy=tpu'], 'no TPU answers'),
    (['--workdir=/dev/null/x'], '--workdir /dev/null/x cannot be written'),
    (['--topology=8xh100'], 'pass --dry_run with it'),
    (['--dry_run', '--topology=8xb9'], 'expected one such as 8xh100'),
    (['--dry_run', '--topology=3xh100'], '3 replicas do not divide'),
    (['--config.distribute.all_reduce_dtype=float16'],
     'expected one of: float32, bfloat16'),
    (['--profile=110,100'], 'expected the first and the last step, such as'),
    (['--profile=0,5'], 'expected the first and the last step, such as'),
    (['--profile=1,1801'], 'ends at step 1801, but training at step 1800'),
    (['--profile=1,2', '--dry_run'], 'leave out --dry_run'),
    (['surplus'], "unknown argument 'surplus'"),
    (['--no_such_flag'], 'no_such_flag'),
    (['--config=configs/no_such.py'], 'No such file or directory'),
]  # fmt: skip


def test_refuses_in_one_line(tmp_path):
  flags = [*TINY, f'--workdir={tmp_path / "w"}']
  for args, message in ERRORS:
    done = run_fork('ddpm.main', *flags, *args)
    assert message in error_line(done), args


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices('GPU')), reason='there is a GPU'
)
@pytest.mark.skipif(cores.count() < 2, reason='one core')
def test_a_cpu_is_split_and_the_time_left_estimated(tmp_path):
  done = run_program(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={tmp_path}',
      '--config.train.batch_size=16', '--config.train.num_steps=22',
      '--config.train.log_every_steps=22',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert '2 CPU devices x 8 images, oneDNN' in done.stderr
  assert ' left, at ' in done.stderr
  assert losses(tmp_path)[0] == [22]


def test_refuses_another_trajectory_and_keeps_the_run(run):
  workdir, _ = run
  before = tensors(workdir, 4)
  line = refused(
      'ddpm.main', *TINY, f'--workdir={workdir}', '--config.seed=5',
      '--config.train.num_steps=6',
  )  # fmt: skip
  assert 'seed 0 -> 5' in line
  assert tensors(workdir, 4).keys() == before.keys()
