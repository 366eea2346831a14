"""One config on every strategy, in every precision: how far the losses part.

  python tests/benchmarks/trajectories.py [--steps=100]

Runs configs/mnist5k.py, with flips and dropout on, as users would, and the
path of a TPU with its strategy replaced by a CPU's: the multi-step function
compiled whole by XLA. Prints a Markdown table: the relative difference of the
first step's loss and gradient, and the largest of the first 20 and of all
losses, from one device in float32. Minutes on 2 cores.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent

CONFIG = {
    'data.random_flip': True,
    'model.dropout': 0.1,
    'train.steps_per_loop': 10,
    'train.log_every_steps': 1,
    'sample.steps': 2,
}
STRATEGIES = {
    'one device': {},
    'one device, no XLA': {'jit_compile': False},
    'mirrored, 2 devices': {
        'distribute.strategy': 'mirrored',
        'distribute.virtual_devices': 2,
    },
    'mirrored, 4 devices': {
        'distribute.strategy': 'mirrored',
        'distribute.virtual_devices': 4,
    },
    'mirrored, 8 devices': {
        'distribute.strategy': 'mirrored',
        'distribute.virtual_devices': 8,
    },
    'multi_worker, 2 processes': {},
    'TPU path on a CPU': {},
}
PRECISIONS = ('tf32', 'mixed_bfloat16', 'mixed_float16')


def run(strategy, precision, steps, workdir):
  """Trains to some steps, from where the workdir is."""
  overrides = CONFIG | STRATEGIES[strategy]
  overrides |= {'precision': precision, 'train.num_steps': steps}
  flags = [f'--workdir={workdir}', '--config=configs/mnist5k.py']
  flags += [f'--config.{name}={value}' for name, value in overrides.items()]
  command = [sys.executable, '-m', 'ddpm.main', *flags]
  if strategy == 'multi_worker, 2 processes':
    command = ['launch/multi_worker.sh', '--local', '2', '--', *flags]
  if strategy == 'TPU path on a CPU':
    command = [sys.executable, __file__, '--tpu_path', *flags]
  env = os.environ | {'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
  subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)


def trajectory(strategy, precision, steps):
  """The first step's gradient, and the losses of all steps."""
  import tensorflow as tf

  with tempfile.TemporaryDirectory() as workdir:
    run(strategy, precision, 1, workdir)
    # Adam's first moment after one step is a tenth of the gradient.
    gradient = tf.train.load_variable(
        f'{workdir}/checkpoints/ckpt-1', 'adam_m/.ATTRIBUTES/VARIABLE_VALUE'
    )
    run(strategy, precision, steps, workdir)
    with open(f'{workdir}/metrics.jsonl') as f:
      rows = [json.loads(line) for line in f]
  assert [row['step'] for row in rows] == list(range(1, steps + 1))
  return gradient, np.array([row['loss'] for row in rows])


def tpu_path():
  """`ddpm.main`, whose loop is compiled as a whole."""
  from ddpm.runtime import environment

  environment.import_tensorflow()
  import tensorflow as tf

  from ddpm import main
  from ddpm.runtime import program
  from ddpm.training import step

  class CompiledLoop(step.Loop):

    def __init__(self, *args, stop, **kwargs):
      del stop  # On a TPU this loop is the host's, and the step is compiled.
      super().__init__(*args, stop=0.0, **kwargs)
      self.run = tf.function(self._run, jit_compile=True, autograph=False)

  step.Loop = CompiledLoop
  program.start(main.main, main.define_flags)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--steps', type=int, default=100)
  steps = parser.parse_args().steps
  print(
      '| precision | strategy | loss of step 1 | gradient of step 1 |'
      f' 20 losses | {steps} losses |\n|---|---|---|---|---|---|'
  )
  reference = None
  for precision in PRECISIONS:
    for strategy in STRATEGIES:
      gradient, losses = trajectory(strategy, precision, steps)
      reference = reference or (gradient, losses)
      distance = np.linalg.norm(gradient - reference[0])
      distance /= np.linalg.norm(reference[0])
      part = np.abs(losses / reference[1] - 1)
      print(
          f'| {precision} | {strategy} | {part[0]:.1e} | {distance:.1e} |'
          f' {part[:20].max():.1e} | {part.max():.1e} |',
          flush=True,
      )


if __name__ == '__main__':
  if '--tpu_path' in sys.argv:
    sys.argv.remove('--tpu_path')
    tpu_path()
  else:
    main()
