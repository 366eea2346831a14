"""What saving and resuming cost, for configs/mnist5k.py.

  python tests/benchmarks/recovery.py

Prints the seconds from the command to the end of the first step after a resume
at step 1 and at step 100,000, in turn; and the seconds that a save keeps the
loop waiting and the background busy. Nothing else should run meanwhile.
"""

import statistics
import tempfile
import time

import startup
import tensorflow as tf

from configs import mnist5k
from ddpm.nn import flat
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.training import state as state_lib

_STEPS = (1, 100_000)


def checkpointer(workdir):
  config = mnist5k.get_config()
  model = build.make_model(config)
  state = state_lib.State(
      flat.flatten(model.trainable_variables), ema_names=('0.995',)
  )
  checkpoints = checkpoint.Checkpointer(
      workdir, state, flat.Layout(model), writes=True, keep_last=3,
      keep_every_steps=0,
  )  # fmt: skip
  checkpoints.restore()
  config_lib.save(config, workdir)
  return state, checkpoints


def seconds_to_resume(workdir, step):
  """Starts the trainer on a checkpoint of a step, and stops it after one."""
  state, checkpoints = checkpointer(workdir)
  state.step.assign(tf.constant(step, tf.int64))
  checkpoints.save(step)
  checkpoints.wait()
  return startup.seconds_to_step(
      step + 1, workdir, '--config.train.num_steps=1000000'
  )


def seconds_to_save():
  """Median seconds in which a save blocks the loop, and until it is on disk."""
  blocked, written = [], []
  with tempfile.TemporaryDirectory() as workdir:
    _, checkpoints = checkpointer(workdir)
    for step in range(1, 12):
      started = time.monotonic()
      checkpoints.save(step)
      blocked.append(time.monotonic() - started)
      checkpoints.wait()
      written.append(time.monotonic() - started)
  return statistics.median(blocked), statistics.median(written)


def main():
  resumed = {step: [] for step in _STEPS}
  for _ in range(4):
    for step in _STEPS:
      with tempfile.TemporaryDirectory() as workdir:
        resumed[step].append(seconds_to_resume(workdir, step))
  for step, seconds in resumed.items():
    # The first start may have filled XLA's cache.
    median = statistics.median(seconds[1:])
    print(f'resume at step {step:,}: {median:.1f} s (median of 3)')
  blocked, written = seconds_to_save()
  print(f'a save: {blocked:.4f} s of the loop, on disk after {written:.3f} s')


if __name__ == '__main__':
  main()
