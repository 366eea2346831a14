"""Seconds from the command to the end of the first step, and where they go.

  python tests/benchmarks/startup.py

For configs/mnist5k.py: on one device, on as many as the trainer chooses, on 8
virtual ones, and for a resume; on one device also with XLA, with its cache
empty and full. Medians of 3, in turn. Nothing else should run meanwhile.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import stopwatch
import turns

RUNS = {
    'one device': ('--config.distribute.strategy=one_device',),
    'the default': (),
    '8 virtual devices': ('--config.distribute.virtual_devices=8',),
}
_XLA = ('--config.distribute.strategy=one_device', '--config.jit_compile=true')


def seconds_to_step(step, workdir, *flags, **env):
  """Starts the trainer, and stops it once it says that a step is done."""
  started = time.monotonic()
  trainer = subprocess.Popen(
      [sys.executable, '-m', 'ddpm.main', '--config=configs/mnist5k.py',
       f'--workdir={workdir}', *flags],
      cwd=turns.ROOT,
      env=os.environ | env,
      stderr=subprocess.PIPE,
      text=True,
  )  # fmt: skip
  for line in trainer.stderr:
    if f'step {step} done' in line:
      break
  else:
    sys.exit('the trainer ended before its first step')
  seconds = time.monotonic() - started
  trainer.kill()
  trainer.wait()
  return seconds


def first_step(*flags, **env):
  """Seconds to the first step of a new run."""
  with tempfile.TemporaryDirectory() as workdir:
    return seconds_to_step(1, workdir, *flags, **env)


def print_phases():
  """Where the seconds of one device go, in this process."""
  began = time.monotonic()
  watch = stopwatch.Stopwatch()
  from ddpm.runtime import environment

  environment.import_tensorflow()
  from configs import mnist5k
  from ddpm.run import build
  from ddpm.training import step as step_lib
  from ddpm.training import trainer as trainer_lib

  watch.seconds['imports'] = time.monotonic() - began
  for owner, name, part in (
      (build, 'make_model', 'building the network'),
      (trainer_lib, '_load_data', 'data'),
      (trainer_lib.Trainer, '_make_blocks', 'data'),
      (step_lib, 'compile_gradient', 'tracing'),
      (step_lib, 'compile_update', 'tracing'),
  ):
    watch.wrap(owner, name, part)
  config = mnist5k.get_config()
  config.distribute.strategy = 'one_device'
  trainer = trainer_lib.Trainer(config.lock(), build.make_strategy(config))
  watch.wrap(trainer._loop, 'run', 'first step, with optimizing the graph')
  trainer.run_until(1)
  watch.seconds['all else'] = (
      time.monotonic() - began - watch.seconds.total()
  )
  print('\n| one device | seconds |\n|---|---|')
  for part, seconds in watch.seconds.most_common():
    print(f'| {part} | {seconds:.2f} |')


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--phases', action='store_true')
  if parser.parse_args().phases:
    print_phases()
    return
  seconds = {name: [] for name in [*RUNS, 'a resume, the default']}
  with tempfile.TemporaryDirectory() as workdir:
    subprocess.run(
        [sys.executable, '-m', 'ddpm.main', '--config=configs/mnist5k.py',
         f'--workdir={workdir}', '--config.train.num_steps=1'],
        cwd=turns.ROOT, check=True,
    )  # fmt: skip
    for _ in range(3):
      for name, flags in RUNS.items():
        seconds[name].append(first_step(*flags))
      seconds['a resume, the default'].append(seconds_to_step(2, workdir))
  with tempfile.TemporaryDirectory() as cache:
    cold, *warm = [
        first_step(*_XLA, XDG_CACHE_HOME=cache) for _ in range(4)
    ]
  seconds['one device, XLA, its cache empty'] = [cold]
  seconds['one device, XLA, its cache full'] = warm
  print('| run | seconds to the end of the first step |\n|---|---|')
  for name, values in seconds.items():
    print(f'| {name} | {statistics.median(values):.1f} |')
  sys.stdout.flush()
  subprocess.run([sys.executable, __file__, '--phases'], check=True)


if __name__ == '__main__':
  main()
