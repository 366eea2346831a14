"""Signals, at any time: what is done is saved, and the exit code says so."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from support import metrics
from support import ROOT
from support import run_program
from support import start_program
from support import TINY_WITHOUT_XLA
from support import wait_for
from support import wait_for_line

RESTART = 75

# Has TensorFlow say so when XLA has compiled one row of the sampler's loop,
# which is when the loop begins.
_LOUD = {
    'TF_CPP_MIN_LOG_LEVEL': '0',
    'TF_CPP_VMODULE': 'device_compilation_profiler=1',
}
_IN_THE_LOOP = 'Compiled __inference_step_'


def start_trainer(workdir, *args, **env):
  """A run that would go on for long."""
  return start_program(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={workdir}',
      '--config.train.num_steps=1000000',
      '--config.train.checkpoint_every_steps=1000000',
      *args, **env,
  )  # fmt: skip


def stop(process, number):
  """Sends a signal; returns the exit code, seconds to it, and what was said."""
  sent = time.monotonic()
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  return process.returncode, time.monotonic() - sent, said


def test_a_signal_saves_the_last_step(tmp_path):
  """And the next start goes on from there; it gets the other signal."""
  step = 0
  for number in (signal.SIGTERM, signal.SIGINT):
    process = start_trainer(tmp_path)
    begin = f'resuming at step {step} of' if step else 'starting at step 0 of'
    wait_for_line(process, begin)
    wait_for_line(process, f'step {step + 4}  loss')
    code, seconds, said = stop(process, number)
    assert code == RESTART and seconds < 30
    step = int(re.search(r'step (\d+) is saved', said)[1])
    # Every step is logged: none is lost, none replayed.
    logged = [row['step'] for row in metrics(tmp_path)]
    assert logged == list(range(1, step + 1))


def test_a_signal_ends_the_sampling_of_the_trainer_and_the_sampler(tmp_path):
  endless = 100_000
  # With XLA: the loop is one of steps that it compiled.
  process = start_trainer(
      tmp_path, '--config.jit_compile=true', '--config.model.dropout=0.0',
      '--config.train.sample_every_steps=3',
      f'--config.diffusion.num_timesteps={endless}',
      f'--config.sample.steps={endless}', **_LOUD,
  )  # fmt: skip
  wait_for_line(process, 'step 3  loss')
  wait_for_line(process, _IN_THE_LOOP)
  code, seconds, said = stop(process, signal.SIGTERM)
  assert code == RESTART and seconds < 30
  # One step more, in which all workers hear of it.
  assert 'step 4 is saved' in said
  assert not (tmp_path / 'samples').exists()

  # The sampler leaves what tells its job, and no images.
  process = start_program(
      'ddpm.sample', f'--workdir={tmp_path}', f'--outdir={tmp_path / "out"}',
      **_LOUD,
  )  # fmt: skip
  wait_for_line(process, _IN_THE_LOOP)
  code, seconds, _ = stop(process, signal.SIGINT)
  assert code == RESTART and seconds < 10
  left = [path.name for path in (tmp_path / 'out').rglob('*')]
  assert sorted(left) == ['job_0.json', 'lock_0', 'parts']


def test_a_signal_while_the_program_loads(tmp_path):
  process = start_trainer(tmp_path)
  maps = pathlib.Path(f'/proc/{process.pid}/maps')
  wait_for(
      lambda: 'tensorflow' in maps.read_text(), 'TensorFlow', process=process
  )
  code, seconds, _ = stop(process, signal.SIGTERM)
  assert code == RESTART and seconds < 10


def free_addresses(number):
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
  addresses = [f'127.0.0.1:{s.getsockname()[1]}' for s in sockets]
  for s in sockets:
    s.close()
  return addresses


def start_workers(workdirs, *args):
  """Two workers on this machine, a workdir each."""
  addresses = free_addresses(len(workdirs))
  return addresses, [
      start_trainer(
          workdir, '--config.distribute.strategy=multi_worker', *args,
          TF_CONFIG=json.dumps({
              'cluster': {'worker': addresses},
              'task': {'type': 'worker', 'index': i},
          }),
      )
      for i, workdir in enumerate(workdirs)
  ]  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_at_the_same_step(tmp_path):
  _, workers = start_workers([tmp_path, tmp_path])
  wait_for_line(workers[0], 'step 4  loss')
  code, seconds, said = stop(workers[1], signal.SIGTERM)
  _, chief_said = workers[0].communicate(timeout=30)
  assert code == workers[0].returncode == RESTART and seconds < 30
  saved = re.search(r'by SIGTERM, (step \d+ is saved)', said)[1]
  assert f'by another worker, {saved}' in chief_said
  assert saved == f'step {metrics(tmp_path)[-1]["step"]} is saved'


@pytest.mark.slow
@pytest.mark.parametrize(
    'lost, number',
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)],
)
def test_a_worker_that_is_gone_is_named_by_the_other(tmp_path, lost, number):
  addresses, workers = start_workers(
      [tmp_path, tmp_path], '--config.train.checkpoint_every_steps=2'
  )
  wait_for_line(workers[0], 'step 4  loss')
  gone, other = workers[lost], workers[1 - lost]
  gone.send_signal(number)
  _, said = other.communicate(timeout=180)  # A busy machine takes its time.
  gone.kill()
  gone.communicate()
  assert other.returncode == RESTART
  assert f'worker {lost} ({addresses[lost]}) has exited' in said


@pytest.mark.slow
def test_a_worker_that_waits_for_the_others_can_be_stopped(tmp_path):
  """TensorFlow holds Python's lock then, and has a handler for SIGTERM."""
  process = start_trainer(
      tmp_path, '--config.distribute.strategy=multi_worker',
      TF_CONFIG=json.dumps({
          'cluster': {'worker': free_addresses(2)},
          'task': {'type': 'worker', 'index': 0},
      }),
  )  # fmt: skip
  wait_for_line(process, 'waiting for all workers')
  time.sleep(2)
  process.send_signal(signal.SIGUSR1)
  process.communicate(timeout=30)
  assert process.returncode == -signal.SIGUSR1


@pytest.mark.slow
def test_a_leader_that_is_killed_while_the_workers_meet(tmp_path):
  """The scripts bring them together again, without a word from the user."""
  addresses = free_addresses(2)
  args = [*TINY_WITHOUT_XLA, f'--workdir={tmp_path}']
  args += ['--config.train.num_steps=4']

  def start(index):
    return subprocess.Popen(
        ['bash', ROOT / 'launch' / 'multi_worker.sh', '--hosts',
         ','.join(addresses), '--index', str(index), '--', *args],
        cwd=ROOT,
        env={**os.environ, 'PYTHON': sys.executable},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip

  other, leader = start(1), start(0)
  wait_for_line(leader, 'waiting for all workers')
  time.sleep(0.5)
  os.killpg(leader.pid, signal.SIGKILL)
  leader.communicate()
  workers = [start(0), other]
  for worker in workers:
    _, said = worker.communicate(timeout=120)
    assert worker.returncode == 0, said
    assert 'Traceback' not in said
  assert metrics(tmp_path)[-1]['step'] == 4


@pytest.mark.slow
def test_workers_that_do_not_share_the_workdir_say_so(tmp_path):
  run_program(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={tmp_path}',
      '--config.train.num_steps=2',
  )  # fmt: skip
  _, workers = start_workers([tmp_path, tmp_path / 'other'])
  for worker in workers:
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert 'a folder that all of them share' in said


def start_sleeper(grace_seconds, hangup=signal.SIG_DFL):
  """A program that hears signals and is too busy to act on them."""
  code = (
      'import time\nfrom ddpm.runtime import preemption\n'
      f'preemption.StopSignal().make_flag({grace_seconds})\n'
      'print("ready", flush=True)\ntime.sleep(60)\n'
  )
  # The tests themselves may run under nohup.
  before = signal.signal(signal.SIGHUP, hangup)
  try:
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
  finally:
    signal.signal(signal.SIGHUP, before)
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_to_stop(number):
  process = start_sleeper(grace_seconds=60)
  process.send_signal(number)
  wait_for_line(process, f'{number.name}: saving and exiting')
  assert stop(process, signal.SIGINT)[0] == 128 + signal.SIGINT


def test_nohup_is_respected():
  process = start_sleeper(grace_seconds=60, hangup=signal.SIG_IGN)
  process.send_signal(signal.SIGHUP)
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  wait_for_line(process, 'SIGTERM: saving')
  assert stop(process, signal.SIGINT)[0] == 128 + signal.SIGINT


def test_a_second_ctrl_c_ends_at_once():
  process = start_sleeper(grace_seconds=60)
  process.send_signal(signal.SIGINT)
  wait_for_line(process, 'SIGINT: saving')
  assert process.poll() is None
  code, seconds, _ = stop(process, signal.SIGINT)
  assert code == 128 + signal.SIGINT and seconds < 10


def test_a_second_sigterm_changes_nothing_and_the_grace_ends():
  process = start_sleeper(grace_seconds=3)
  process.send_signal(signal.SIGTERM)
  wait_for_line(process, 'SIGTERM: saving')
  code, seconds, said = stop(process, signal.SIGTERM)
  assert code == RESTART and 1 < seconds < 10
  assert 'exiting without saving' in said


# A disk that takes a minute for each checkpoint but the first.
_SLOW_DISK = """
import runpy, time
from ddpm.run import checkpoint

flush = checkpoint._flush

def slow(path):
  if not path.endswith('ckpt-2'):
    time.sleep(60)
  flush(path)

checkpoint._flush = slow
runpy.run_module('ddpm.main', run_name='__main__', alter_sys=True)
"""


def test_a_disk_too_slow_for_the_grace_loses_no_checkpoint(tmp_path):
  flags = [
      *TINY_WITHOUT_XLA, f'--workdir={tmp_path}',
      '--config.train.checkpoint_every_steps=2',
      '--config.train.grace_seconds=5',
  ]  # fmt: skip
  process = subprocess.Popen(
      [sys.executable, '-c', _SLOW_DISK, *flags],
      cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  # The next save waits for that of step 4.
  wait_for_line(process, 'step 6  loss')
  code, seconds, said = stop(process, signal.SIGTERM)
  assert code == RESTART and seconds < 10
  assert 'exiting without saving' in said
  before = {row['step']: row['loss'] for row in metrics(tmp_path)}
  done = run_program('ddpm.main', *flags, '--config.train.num_steps=6')
  assert done.returncode == 0, done.stderr
  assert re.search('resuming at step [24] of 6', done.stderr)
  after = {row['step']: row['loss'] for row in metrics(tmp_path)}
  assert list(after) == [1, 2, 3, 4, 5, 6]
  assert after == {step: before[step] for step in after}
