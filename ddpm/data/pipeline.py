"""The batches of a run.

The images of step n's batch are a pure function of (seed, n): image number
`i` of epoch `e` is element `index_shuffle(i, hash(seed, e))` of the data set.
There is no shuffle buffer to fill, nothing to skip on resume, and no partial
batch at the end of an epoch.
"""

import numpy as np
import tensorflow as tf

from ddpm import rng
from ddpm.data import resize
from ddpm.runtime import cores

# Several blocks per replica are under way: on the device, and ready on the
# host.
_BLOCK_BYTES = 32 * 2**20

# The stream of random numbers, beside those of `training.step`.
_PART = 5


def batch_indices(
    seed, step, positions, *, batch_size, num_images, shuffle_rounds
):
  """Returns the images at given positions of a step's batch.

  Args:
    seed: integer.
    step: int64 tensor, scalar or [b].
    positions: int64 tensor [b], positions in the global batch.
    batch_size: images in the global batch.
    num_images: images in the data set.
    shuffle_rounds: see `config.data.shuffle_rounds`.

  Returns:
    int64 [b], indices into the data set.
  """
  example = step * batch_size + positions
  epoch = example // num_images
  # The raw op takes a seed of three words per index. Its wrapper,
  # `tf.random.experimental.index_shuffle`, cannot pad a batch of seeds to that.
  # All three words are hashed: if the first and last are equal, as in
  # (0, 0, 0), the op's shuffle is the identity.
  key = rng.fold_in(rng.key(seed), epoch)  # [b, 2]
  words = tf.concat([key, rng.fold_in(key, 0)[:, :1]], axis=-1)
  return tf.raw_ops.RandomIndexShuffle(
      index=example % num_images,
      seed=tf.cast(words, tf.int64),
      max_index=tf.constant(num_images - 1, tf.int64),
      rounds=shuffle_rounds,
  )


def steps_per_block(steps_per_loop, image_bytes):
  """Steps whose images reach a replica in one block.

  Args:
    steps_per_loop: `config.train.steps_per_loop`, the most.
    image_bytes: of a replica's images in a step.
  """
  return max(1, min(steps_per_loop, _BLOCK_BYTES // image_bytes))


def batches(
    source,
    *,
    seed,
    batch_size,
    shuffle_rounds,
    first_block,
    steps_per_block,
    context,
    part_size=None,
    remote=False,
):
  """One worker's share of all batches, in blocks of steps.

  A block holds the batches of `steps_per_block` steps, so that they reach the
  device in one transfer and a compiled loop can run over them. Block k starts
  at step k * steps_per_block. Each element is one replica's share of a block.

  Args:
    source: see `source`.
    seed: integer.
    batch_size: global batch size B, divisible by the number of replicas.
    shuffle_rounds: see `batch_indices`.
    first_block: block to start at; earlier ones cost nothing.
    steps_per_block: steps per block, K.
    context: `tf.distribute.InputContext`.
    part_size: (height, width) of the random parts to take of the images, see
      `resize.random_part`; None for whole images.
    remote: whether it runs on other hosts, see `source`.

  Returns:
    Endless `tf.data.Dataset` of dicts, with b = B / replicas: image uint8
    [K, b, H, W, C], label int32 [K, b], position int64 [K, b] in the global
    batch.
  """
  b = batch_size // context.num_replicas_in_sync
  local_replicas = (
      context.num_replicas_in_sync // context.num_input_pipelines
  )

  def part(i):
    block = first_block + i // local_replicas
    replica = context.input_pipeline_id * local_replicas + i % local_replicas
    positions = replica * b + tf.range(b, dtype=tf.int64)
    steps = block * steps_per_block + tf.range(steps_per_block, dtype=tf.int64)
    indices = batch_indices(
        seed,
        tf.repeat(steps, b),
        tf.tile(positions, [steps_per_block]),
        batch_size=batch_size,
        num_images=len(source),
        shuffle_rounds=shuffle_rounds,
    )
    element = {
        'index': tf.reshape(indices, [steps_per_block, b]),
        'position': tf.tile(positions[None], [steps_per_block, 1]),
    }
    if part_size:
      # Of the example's key, as all of its randomness.
      keys = rng.fold_in(rng.key(seed), steps[:, None])
      keys = rng.fold_in(rng.fold_in(keys, positions[None]), _PART)
      element['key'] = keys
    return element

  # Longer than any run.
  parts = tf.data.Dataset.range(np.iinfo(np.int64).max).map(part)
  options = tf.data.Options()
  # There is nothing to tune, and the tuner's thread can hang the end of a run
  # (see `strategy.iterate`).
  options.autotune.enabled = False
  # Nor to optimize, which would copy the images.
  options.experimental_optimization.apply_default_optimizations = False
  dataset = source.read(parts, remote)
  if part_size:
    dataset = _random_parts(dataset, part_size)
  dataset = dataset.prefetch(local_replicas)
  return dataset.with_options(options)


def _random_parts(dataset, size):
  """Takes a random part of each image, by its key."""
  steps, b, _ = dataset.element_spec['key'].shape

  def flat(element):
    return tf.nest.map_structure(
        lambda value: tf.reshape(value, [steps * b, *value.shape[2:]]), element
    )

  def part(element):
    key = element.pop('key')
    return element | {'image': resize.random_part(element['image'], key, *size)}

  parts = dataset.map(flat).unbatch()
  parts = parts.map(
      part, num_parallel_calls=cores.count(), deterministic=True
  )
  return (
      parts.batch(b, drop_remainder=True).batch(steps, drop_remainder=True)
  )
