"""A long run that is killed every minute, beside one that is not.

  python tests/benchmarks/soak.py

Trains a tiny network for 20,000 steps with exact checkpoints, on 4 virtual
devices, then in 2 processes of 2: once undisturbed, and once with kill -9 for
all processes every minute, each time resumed by the same command. Prints the
restarts, whether the last weights are the same to the bit, and the threads,
open files and memory of the undisturbed processes at a tenth of the run and at
its end, which should be equal. Takes an hour on 2 cores.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))

import support  # noqa: E402

_CASES = {'4 devices': (1, 4), '2 processes of 2 devices': (2, 2)}


def start(workdir, steps, processes, devices):
  flags = [
      *support.TINY_WITHOUT_XLA,
      f'--workdir={workdir}',
      f'--config.train.num_steps={steps}',
      '--config.train.steps_per_loop=50',
      '--config.train.log_every_steps=50',
      '--config.train.checkpoint_every_steps=200',
      '--config.optimizer.decay=constant',
      '--config.train.sample_every_steps=5000',
      f'--config.distribute.virtual_devices={devices}',
  ]
  command = [str(ROOT / 'launch/local.sh'), *flags]
  if processes > 1:
    script = str(ROOT / 'launch/multi_worker.sh')
    command = [script, '--local', str(processes), '--', *flags]
  # A group of its own, to be killed as a whole.
  return subprocess.Popen(
      command,
      cwd=ROOT,
      env=os.environ | {'PYTHON': sys.executable},
      stdout=subprocess.DEVNULL,
      stderr=open(f'{workdir}.log', 'a'),
      start_new_session=True,
  )


def usage(group):
  """Threads, open files and MiB of each trainer in a process group."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if os.getpgid(int(path.name)) != group:
        continue
      if 'ddpm.main' not in (path / 'cmdline').read_text():
        continue
      if not os.readlink(path / 'exe').rpartition('/')[2].startswith('python'):
        continue
      lines = (path / 'status').read_text().splitlines()
      status = dict(line.split(':', 1) for line in lines)
      files = len(list((path / 'fd').iterdir()))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
      continue
    memory = int(status['VmRSS'].split()[0]) // 1024
    found.append((int(status['Threads']), files, memory))
  return found


def newest(workdir):
  steps = [
      int(path.stem.rpartition('-')[2])
      for path in pathlib.Path(workdir).glob('checkpoints/ckpt-*.index')
  ]
  return max(steps, default=0)


def undisturbed(workdir, steps, case):
  process = start(workdir, steps, *case)
  at_a_tenth = last = None
  while process.poll() is None:
    time.sleep(5)
    now = usage(process.pid)
    last = now or last
    if at_a_tenth is None and newest(workdir) >= steps // 10:
      at_a_tenth = now
  return at_a_tenth, last


def killed(workdir, steps, case, seconds):
  """Returns the number of kills."""
  kills = 0
  while True:
    process = start(workdir, steps, *case)
    try:
      code = process.wait(seconds)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      kills += 1
    else:
      if code:
        raise SystemExit(f'exit code {code}: see {workdir}.log')
      return kills


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=20_000)
  parser.add_argument('--seconds', type=float, default=60, help='between kills')
  args = parser.parse_args()
  folder = tempfile.mkdtemp(prefix='soak')
  for name, case in _CASES.items():
    one, other = (
        os.path.join(folder, f'{case[0]}_{which}') for which in ('a', 'b')
    )
    before, after = undisturbed(one, args.steps, case)
    kills = killed(other, args.steps, case, args.seconds)
    weights = [
        support.tensors(pathlib.Path(w), args.steps) for w in (one, other)
    ]
    same = all(
        np.array_equal(weights[0][key], weights[1][key]) for key in weights[0]
    )
    print(
        f'{name}: {args.steps} steps; killed {kills} times;'
        f' {"the same state to the bit" if same else "THE STATES DIFFER"}\n'
        f'  threads, open files, MiB at a tenth: {before}\n'
        f'  threads, open files, MiB at the end: {after}',
        flush=True,
    )


if __name__ == '__main__':
  main()
