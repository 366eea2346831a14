"""What goes wrong around a run: one clear line, and nothing is lost.

Damaged checkpoints are in test_checkpoint.py, signals and workers that die in
test_preemption.py, a workdir in use in test_lock.py.
"""

import contextlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from support import error_line
from support import metrics
from support import refused
from support import ROOT
from support import run_program
from support import start_program
from support import tensors
from support import TINY
from support import tiny_config
from support import TINY_WITHOUT_XLA
from support import wait_for_line
import tensorflow as tf

from ddpm.data import catalog
from ddpm.nn import flat
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.runtime import preemption
from ddpm.runtime.errors import UserError
from ddpm.training import state as state_lib
from ddpm.training import trainer as trainer_lib


def run(workdir, steps, **overrides):
  overrides |= {'train.num_steps': steps, 'jit_compile': False}
  config = tiny_config(**overrides)
  strategy = tf.distribute.OneDeviceStrategy('CPU:0')
  trainer_lib.train(config, str(workdir), strategy, preemption.NoSignal())


def newest(workdir):
  return checkpoint.find(str(workdir), 'latest').rpartition('-')[2]


def logged(workdir):
  return [row['step'] for row in metrics(workdir)]


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """A workdir with the checkpoint of step 2, to be copied."""
  workdir = tmp_path_factory.mktemp('original')
  run(workdir, 2)
  return workdir


@pytest.fixture
def trained(original, tmp_path):
  """A workdir with the checkpoint of step 2."""
  return shutil.copytree(original, tmp_path / 'trained')


def poison(workdir):
  """Makes a weight of the newest checkpoint so large that others overflow."""
  model = build.make_model(tiny_config())
  state = state_lib.State(
      flat.flatten(model.trainable_variables), ema_names=('0.995',)
  )
  checkpoints = checkpoint.Checkpointer(
      str(workdir), state, flat.Layout(model), writes=True, keep_last=1,
      keep_every_steps=0,
  )  # fmt: skip
  step = checkpoints.restore()
  params = state.params.numpy()
  params[:] = 1e38
  state.params.assign(params)
  checkpoints.save(step)
  checkpoints.wait()


def stops_at(workdir, step, after='', **overrides):
  """Whether weights that overflow stop a run at a step."""
  poison(workdir)
  message = (
      f"step {step}: the loss is nan and the gradient's norm is nan{after}:"
      ' lower optimizer.learning_rate'
  )
  with pytest.raises(UserError, match=message):
    run(workdir, 20, **overrides, **{'train.checkpoint_every_steps': 20})
  return newest(workdir) == '2' and not (workdir / 'samples').exists()


def test_weights_that_overflow_stop_the_run(trained):
  assert stops_at(trained, 3)


def test_an_update_that_is_not_finite_is_not_saved(tmp_path):
  """Adam's moments and the gradient are finite; the rate is not in float32."""
  huge = {'optimizer.learning_rate': 1e39, 'optimizer.warmup_steps': 0}
  with pytest.raises(UserError, match='params of step 1 is not finite'):
    run(tmp_path, 1, **huge)
  assert not list((tmp_path / 'checkpoints').glob('ckpt-*'))


def test_in_half_precision_they_stop_it_after_some_steps(tmp_path):
  half = {'precision': 'mixed_float16', 'train.max_skipped_steps': 2}
  run(tmp_path, 2, **half)
  assert stops_at(tmp_path, 5, ', after 2 more such steps', **half)


def test_a_log_and_a_config_that_are_gone_are_begun_anew(trained):
  (trained / 'metrics.jsonl').unlink()
  (trained / 'config.json').unlink()
  run(trained, 4)
  assert logged(trained) == [3, 4]
  assert (trained / 'config.json').exists() and newest(trained) == '4'


def test_a_log_that_was_cut_short_goes_on(trained):
  with open(trained / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 3, "loss": 0.')
  run(trained, 4)
  assert logged(trained) == [1, 2, 3, 4]


def test_a_config_that_is_damaged_is_named(trained):
  (trained / 'config.json').write_text('{"seed": ')
  with pytest.raises(UserError, match=r'config\.json is not a config'):
    run(trained, 4)
  assert newest(trained) == '2'


def test_a_data_set_that_is_gone_is_named(trained, monkeypatch):
  def load(*args, **kwargs):
    raise UserError('data set is not prepared')

  monkeypatch.setattr(catalog, 'load', load)
  with pytest.raises(UserError, match='is not prepared'):
    run(trained, 4)
  assert newest(trained) == '2'


def program(workdir, *args):
  return ('ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={workdir}', *args)


def test_a_checkpoint_that_finds_no_room_is_an_error(trained):
  """The limit stands for a disk that is full: 100 KiB do not hold the state."""
  command = [
      'bash', '-c', 'ulimit -f 100 && exec "$@"', '-', sys.executable, '-m',
      *program(trained, '--config.train.num_steps=9'),
  ]  # fmt: skip
  line = error_line(subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, check=False
  ), after_log=True)  # fmt: skip
  assert f'{trained}/checkpoints cannot be written: ' in line
  assert newest(trained) == '2'
  run(trained, 4)
  assert newest(trained) == '4'


@contextlib.contextmanager
def mounted(path, options):
  path.mkdir(exist_ok=True)
  mount = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(path)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('needs the right to mount')
  try:
    yield
  finally:
    subprocess.run(['umount', str(path)], check=True)


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(tmp_path):
  with mounted(tmp_path / 'disk', 'size=1m'):
    workdir = tmp_path / 'disk' / 'run'
    line = refused(*program(
        workdir, '--config.train.keep_last=1000',
        '--config.train.num_steps=1000',
    ), after_log=True)  # fmt: skip
    assert 'cannot be written: ' in line and 'No space left' in line
    step = int(newest(workdir))
    assert step >= 2
    # With room again, the same command goes on.
    subprocess.run(
        ['mount', '-o', 'remount,size=100m', workdir.parent], check=True
    )
    run(workdir, step + 2, **{'train.keep_last': 1000})
    assert int(newest(workdir)) == step + 2
    assert logged(workdir) == list(range(1, step + 3))


def test_a_workdir_that_is_read_only_is_an_error(original, tmp_path):
  with mounted(tmp_path / 'disk', 'size=9m'):
    workdir = shutil.copytree(original, tmp_path / 'disk' / 'run')
    subprocess.run(['mount', '-o', 'remount,ro', workdir.parent], check=True)
    command = program(workdir, '--config.train.num_steps=4')
    line = refused(*command, after_log=True)
    assert f'{workdir}' in line and 'cannot be written' in line
    assert newest(workdir) == '2'


def test_a_second_run_on_a_workdir_is_refused(tmp_path):
  first = start_program(*program(tmp_path))
  wait_for_line(first, 'step 1 done')
  try:
    line = refused(*program(tmp_path))
  finally:
    first.kill()
    first.communicate()
  assert f'in use by process {first.pid} on ' in line


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tmp_path):
  """SIGKILL, some inside a save, until the run is done."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  command = ['ddpm.main', *TINY, '--config.train.num_steps=150']
  done = run_program(*command, f'--workdir={whole}')
  assert done.returncode == 0, done.stderr
  moments = random.Random(0)
  kills = 0
  while True:
    process = start_program(*command, f'--workdir={killed}')
    for line in process.stderr:
      if 'done, compiled' in line:
        break
    time.sleep(moments.uniform(0, 0.8))
    if process.poll() is not None:
      break
    process.kill()
    process.communicate()
    kills += 1
  assert process.returncode == 0 and kills >= 2
  for name, value in tensors(whole, 150).items():
    np.testing.assert_array_equal(tensors(killed, 150)[name], value, name)
  assert logged(killed) == logged(whole) == list(range(1, 151))
  losses = [[row['loss'] for row in metrics(w)] for w in (whole, killed)]
  assert losses[0] == losses[1]
