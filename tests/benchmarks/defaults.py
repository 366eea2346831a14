"""Are this machine's default devices, threads and compiler the fastest?

  python tests/benchmarks/defaults.py

Trains two small networks with every choice that a CPU allows, in turn, and
prints a Markdown table of images/s (medians) and of the CPU time spent in the
kernel. The first row is what ddpm chooses by itself. Some five minutes; nothing
else should run meanwhile.

  python tests/benchmarks/defaults.py --devices=1,2,4,8,16

prints what each number of virtual devices costs instead, at the same batch
size: CPU seconds per step, peak memory, and images/s.
"""

import argparse
import ast
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent

NETWORKS = {
    'mnist5k': {},
    # A U-Net at the images' own resolution.
    '1.62 M': {
        'model.patch_size': 1,
        'model.channel_multipliers': (1, 2, 2),
        'model.num_res_blocks': 2,
    },
}
_ONE = {'distribute.strategy': 'one_device'}
_XLA, _NO_XLA = {'jit_compile': True}, {'jit_compile': False}
# Name: config, TF_ENABLE_ONEDNN_OPTS.
SETTINGS = {
    'the default': ({}, None),
    'oneDNN, one device on all cores': (_ONE | _NO_XLA, '1'),
    'oneDNN, one device per core': (_NO_XLA, '1'),
    "TensorFlow's kernels, one device on all cores": (_ONE | _NO_XLA, '0'),
    "TensorFlow's kernels, one device per core": (_NO_XLA, '0'),
    'XLA, one device on all cores': (_ONE | _XLA, '0'),
    'XLA, two devices': (_XLA | {'distribute.virtual_devices': 2}, '0'),
}
_TURNS, _SECONDS = 3, 4.0


class Worker:
  """A process that trains with one choice when it is told to."""

  def __init__(self, overrides, one_dnn=None):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    if one_dnn:
      env['TF_ENABLE_ONEDNN_OPTS'] = one_dnn
    self._process = subprocess.Popen(
        [sys.executable, __file__, '--worker', repr(overrides)],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    self.devices = self._answer()
    self._turns = []

  def take_turn(self):
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    self._turns.append(self._answer())

  def medians(self):
    """Of what `train` measured, by name."""
    return {
        name: statistics.median(turn[name] for turn in self._turns)
        for name in self._turns[0]
    }

  def close(self):
    self._process.stdin.close()
    self._process.wait()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      sys.exit('a worker ended: see above')
    return json.loads(line)


def work(overrides):
  """Prints what it trains on, and then one measurement per line of input."""
  from ddpm.runtime import environment

  environment.prepare()
  from configs import mnist5k
  from ddpm.run import build
  from ddpm.training import trainer as trainer_lib

  config = mnist5k.get_config()
  config.update_from_flattened_dict(overrides)
  trainer = trainer_lib.Trainer(config.lock(), build.make_strategy(config))
  step, _, _ = trainer.run_until(5)
  print(json.dumps(trainer.devices), flush=True)
  for _ in sys.stdin:
    first, began, before = step, time.monotonic(), _usage()
    while time.monotonic() - began < _SECONDS:
      step, _, _ = trainer.run_until(step + 1)
    seconds, after = time.monotonic() - began, _usage()
    user, kernel, faults = (b - a for a, b in zip(before, after, strict=True))
    answer = {
        'images_per_second': (step - first) * config.train.batch_size / seconds,
        'cpu_seconds': (user + kernel) / (step - first),
        'kernel': kernel / (user + kernel),
        'faults_per_second': faults / seconds,
        'gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(answer), flush=True)


def _usage():
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime, usage.ru_stime, usage.ru_minflt


def measure(workers):
  """Lets the workers take turns, and closes them."""
  for _ in range(_TURNS):
    for worker in workers:
      worker.take_turn()
  for worker in workers:
    worker.close()
  return [worker.medians() for worker in workers]


def compare_settings():
  print(
      '| network | setting | devices | images/s | in the kernel | page faults/s'
      ' |\n|---|---|---|---|---|---|'
  )
  for network, overrides in NETWORKS.items():
    workers = [
        Worker(overrides | config, one_dnn)
        for config, one_dnn in SETTINGS.values()
    ]
    for setting, worker, result in zip(
        SETTINGS, workers, measure(workers), strict=True
    ):
      print(
          f'| {network} | {setting} | {worker.devices} |'
          f' {result["images_per_second"]:.1f} | {result["kernel"]:.0%} |'
          f' {result["faults_per_second"]:,.0f} |',
          flush=True,
      )


def compare_devices(numbers, batch_size):
  print(
      '| network | virtual devices | CPU seconds per step | images/s | peak'
      ' memory |\n|---|---|---|---|---|'
  )
  for network, overrides in NETWORKS.items():
    workers = [
        Worker(
            overrides
            | {
                'train.batch_size': batch_size,
                'distribute.virtual_devices': number,
            }
        )
        for number in numbers
    ]
    for number, result in zip(numbers, measure(workers), strict=True):
      print(
          f'| {network} | {number} | {result["cpu_seconds"]:.4f} |'
          f' {result["images_per_second"]:.1f} | {result["gib"]:.2f} GiB |',
          flush=True,
      )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--devices')
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--worker')
  args = parser.parse_args()
  if args.worker:
    work(ast.literal_eval(args.worker))
  elif args.devices:
    numbers = [int(n) for n in args.devices.split(',')]
    compare_devices(numbers, args.batch_size)
  else:
    compare_settings()


if __name__ == '__main__':
  main()
