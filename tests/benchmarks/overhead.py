"""Where a run's time goes outside its compiled steps.

  python tests/benchmarks/overhead.py [--config=mnist5k] [--steps=2000]

Trains as ddpm.main does, into a temporary folder, and prints a Markdown table:
the share of the wall time, from the second step to the end of the run, of the
compiled steps and of all else that the loop waits for. Nothing else should run
meanwhile.
"""

import argparse
import importlib
import tempfile
import time

import stopwatch


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--config', default='mnist5k')
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--data_dir')
  args = parser.parse_args()
  from ddpm.runtime import environment

  environment.import_tensorflow()
  from ddpm.run import build
  from ddpm.run import checkpoint
  from ddpm.run import logs
  from ddpm.runtime import preemption
  from ddpm.training import trainer as trainer_lib

  config = importlib.import_module(f'configs.{args.config}').get_config()
  config.data.data_dir = args.data_dir or config.data.data_dir
  config.train.num_steps = args.steps
  watch = stopwatch.Stopwatch()
  for owner, name, part in (
      (logs.Writers, 'scalars', 'logs'),
      (trainer_lib.Trainer, 'measure', 'logs'),
      (logs.Writers, 'images', 'grids: to write'),
      (logs.Writers, 'close', 'logs'),
      (trainer_lib.Trainer, 'draw', 'grids: to draw'),
      (checkpoint.Checkpointer, 'save', 'checkpoints'),
      (checkpoint.Checkpointer, 'wait', 'checkpoints'),
      (trainer_lib.Trainer, '_make_blocks', 'data'),
  ):
    watch.wrap(owner, name, part)

  # The clock starts when the first step, which compiles, is done.
  began = None
  compiled = trainer_lib.Trainer.run_until

  def run_until(trainer, event):
    nonlocal began
    if began is None:
      compiled(trainer, 1)
      watch.wrap(trainer._loop, 'run', 'compiled steps')
      watch.wrap(trainer._loop, 'newest', 'compiled steps')  # waits for them
      watch.seconds.clear()
      began = time.monotonic()
      trainer._blocks = Timed(trainer._blocks, watch)
    return compiled(trainer, event)

  trainer_lib.Trainer.run_until = run_until
  with tempfile.TemporaryDirectory() as workdir:
    trainer_lib.train(
        config.lock(), workdir, build.make_strategy(config),
        preemption.NoSignal(),
    )  # fmt: skip
  total = time.monotonic() - began
  watch.seconds['all else, Python'] = total - watch.seconds.total()
  outside = total - watch.seconds['compiled steps']
  print(f'{args.config}, {args.steps} steps: {total:.1f} s\n')
  print('| part | seconds | share |\n|---|---|---|')
  for part, seconds in watch.seconds.most_common():
    print(f'| {part} | {seconds:.2f} | {seconds / total:.2%} |')
  share = outside / total
  print(f'| outside the compiled steps | {outside:.2f} | {share:.2%} |')


class Timed:
  """An iterator whose waits are measured."""

  def __init__(self, iterator, watch):
    self._iterator = iterator
    watch.wrap(self, '_next', 'data')

  def _next(self):
    return next(self._iterator)

  def __iter__(self):
    return self

  def __next__(self):
    return self._next()


if __name__ == '__main__':
  main()
