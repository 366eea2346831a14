"""What a run will take, in lines for people: `--dry_run`."""

import json
import math

import tensorflow as tf

from ddpm.run import build
from ddpm.runtime import devices
from ddpm.runtime import memory
from ddpm.runtime import words
from ddpm.training import cost as cost_lib
from ddpm.training import trainer as trainer_lib

# Steps, after the first, that are timed.
_TIMED = 5

# Of a scalar in TensorBoard's file, with its name and metadata (measured).
_EVENT_BYTES = 80


def lines(config, strategy):
  """Runs a few steps, and says what a whole run takes. Writes nothing.

  Args:
    config: a valid config.
    strategy: `tf.distribute.Strategy`.

  Yields:
    Lines, 'name: value'.

  Raises:
    UserError: config, data and strategy do not fit together.
  """
  trainer = trainer_lib.Trainer(config, strategy)
  replicas, images = strategy.num_replicas_in_sync, trainer.replica_batch_size
  yield f'devices: {", ".join(strategy.extended.worker_devices)}'
  yield f'replicas: {replicas}'
  yield f'per-replica batch: {images}'
  yield f'parameters: {trainer.layout.size}'
  _, _, metrics = trainer.run_until(1)
  yield f'first loss: {metrics["loss"]:.6f}'
  trainer.throughput.restart(1)
  step, _, metrics = trainer.run_until(1 + _TIMED)
  metrics |= trainer.measure(step)
  if peak := devices.peak_memory(strategy):
    yield f'memory: {peak / 2**30:.2f} GiB peak on the fullest GPU'
  else:
    yield f'memory: {memory.peak() / 2**30:.2f} GiB peak resident set'
  cost = cost_lib.of_step(
      config, images, jit_compile=build.jit_compile(config, strategy)
  )
  yield f'per-replica memory: {cost.peak_bytes / 2**30:.2f} GiB, as counted'
  flops = cost.flops / images
  yield f'FLOPs per image: {flops / 1e9:.3g} GFLOP, forward and backward'
  reduced = words.size(cost.reduced_bytes) if replicas > 1 else 'none'
  yield f'all-reduce per step: {reduced}'
  state = tf.nest.flatten(trainer.state.variables())
  saved = sum(math.prod(v.shape) * v.dtype.size for v in state)
  yield from _disk(config, saved, metrics)
  rate = metrics['images_per_second']
  yield from _duration(config.train, trainer.data['images'], rate)


def _disk(config, checkpoint, metrics):
  """Lines about the workdir's size."""
  yield f'checkpoint: {words.size(checkpoint)}'
  train = config.train
  saves = math.ceil(train.num_steps / train.checkpoint_every_steps)
  # The newest is whole before the oldest is removed.
  at_once = min(train.keep_last + 1, saves)
  kept = 0
  if train.keep_every_steps:
    period = math.lcm(train.keep_every_steps, train.checkpoint_every_steps)
    kept = train.num_steps // period
  row = len(json.dumps(metrics)) + _EVENT_BYTES * len(metrics)
  logs = train.num_steps // train.log_every_steps * row
  grids = 1
  if train.sample_every_steps:
    grids += train.num_steps // train.sample_every_steps
  # A file and a picture in TensorBoard, as if without compression.
  pixels = len(trainer_lib.GRID_SEEDS) * math.prod(build.image_size(config))
  pictures = 2 * grids * pixels * config.model.image_channels
  total = (at_once + kept) * checkpoint + logs + pictures
  yield (
      f'disk: at most {words.size(total)}: {at_once} checkpoints at once,'
      f' {kept} kept for good, logs {words.size(logs)}, {grids} grids'
  )


def _duration(train, num_images, rate):
  """Lines about the run's length."""
  images = train.num_steps * train.batch_size
  yield (
      f'training: {train.num_steps:,} steps, {images:,} images,'
      f' {images / num_images:.3g} epochs of {num_images:,}'
  )
  yield (
      f'time: about {words.duration(images / rate)}, at {rate:.1f} images/s of'
      f' steps 2 to {1 + _TIMED}, without grids'
  )
