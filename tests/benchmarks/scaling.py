"""Two processes against two devices of one, and what --dry_run predicts.

  python tests/benchmarks/scaling.py

Trains configs/mnist5k.py on two virtual devices and in two processes on
loopback, in turn; prints images/s (medians of the log's), the bytes per step
over loopback beside those that `ddpm.main --dry_run --topology` counts, and the
peak memory beside what --dry_run measures. Nothing else should run meanwhile,
or use loopback.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import turns

_TURNS = 3
_STEPS = 300
_COMMON = (
    '--config=configs/mnist5k.py', '--config.train.sample_every_steps=0',
    '--config.train.checkpoint_every_steps=100000',
)  # fmt: skip
_MAIN = (sys.executable, '-m', 'ddpm.main')
_TWO_DEVICES = (*_MAIN, *_COMMON, '--config.distribute.virtual_devices=2')
_TWO_PROCESSES = (
    'bash', 'launch/multi_worker.sh', '--local', '2', '--', *_COMMON,
)  # fmt: skip


def loopback_bytes():
  """Sent over loopback so far."""
  line = re.search(
      r'^\s*lo:(.*)$', pathlib.Path('/proc/net/dev').read_text(), re.M
  )
  return int(line[1].split()[8])


def train(command, steps):
  """Returns median images/s, bytes over loopback, and peak memory."""
  before = loopback_bytes()
  with tempfile.TemporaryDirectory() as workdir:
    process = subprocess.Popen(
        [*command, f'--workdir={workdir}', f'--config.train.num_steps={steps}'],
        cwd=turns.ROOT,
        env=os.environ | {'PYTHON': sys.executable},
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    rows = pathlib.Path(workdir, 'metrics.jsonl').read_text().splitlines()
  rates = [json.loads(row)['images_per_second'] for row in rows]
  # The first row is of fewer steps.
  return (
      statistics.median(rates[1:]),
      loopback_bytes() - before,
      usage.ru_maxrss * 1024,
  )


def dry_run(*flags):
  """What it prints, by name."""
  output = subprocess.run(
      [*_TWO_DEVICES, '--dry_run', *flags],
      cwd=turns.ROOT, check=True, capture_output=True, text=True,
  ).stdout  # fmt: skip
  return dict(line.split(': ', 1) for line in output.splitlines())


def main():
  devices, processes = [], []
  for _ in range(_TURNS):
    devices.append(train(_TWO_DEVICES, _STEPS))
    processes.append(train(_TWO_PROCESSES, _STEPS))
  rate, other = (
      statistics.median(run[0] for run in runs) for runs in (devices, processes)
  )
  print('| | images/s |\n|---|---|')
  print(f'| 2 devices in one process | {rate:.1f} |')
  print(f'| 2 processes on loopback | {other:.1f}, {other / rate:.2f} of it |')

  # Start and end cancel out. Both processes send over the same interface.
  more = train(_TWO_PROCESSES, 2 * _STEPS)
  measured = (more[1] - processes[-1][1]) / _STEPS / 2
  counted = re.search(
      r'\(([\d.]+) MB each way', dry_run('--topology=2xh100')['step']
  )
  print('\n| bytes per step and process | |\n|---|---|')
  print(f'| measured | {measured / 1e6:.2f} MB |')
  print(f'| --dry_run --topology | {counted[1]} MB |')

  peak = statistics.median(run[2] for run in devices)
  print('\n| peak memory, 2 devices | |\n|---|---|')
  print(f'| of {_STEPS} steps and a grid | {peak / 2**30:.2f} GiB |')
  print(f'| --dry_run | {dry_run()["memory"]} |')


if __name__ == '__main__':
  main()
