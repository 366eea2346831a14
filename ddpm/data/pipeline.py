"""The batches of a run.

Which images make up step n's batch is a pure function of (seed, n): image
number `i` of epoch `e` is element `index_shuffle(i, hash(seed, e))` of the
data set. There is no shuffle buffer to fill, nothing to skip on a resume, and
no smaller batch at the end of an epoch.
"""

import numpy as np
import tensorflow as tf

from ddpm import rng


def batch_indices(seed, step, positions, *, batch_size, num_images):
  """Which images stand at some positions of a step's batch.

  Args:
    seed: integer.
    step: int64 tensor, scalar or [b].
    positions: int64 tensor [b], positions in the global batch.
    batch_size: images in the global batch.
    num_images: images in the data set.

  Returns:
    int64 [b], indices into the data set.
  """
  example = step * batch_size + positions
  epoch = example // num_images
  # What `tf.random.experimental.index_shuffle` wraps, whose padding of seeds
  # to the three words that the operation takes does not fit a batch of them.
  # The words are hashed first, all three: where the first and the last are
  # equal, as in (0, 0, 0), the operation's shuffle is the identity.
  key = rng.fold_in(rng.key(seed), epoch)  # [b, 2]
  words = tf.concat([key, rng.fold_in(key, 0)[:, :1]], axis=-1)
  return tf.raw_ops.RandomIndexShuffle(
      index=example % num_images,
      seed=tf.cast(words, tf.int64),
      max_index=tf.constant(num_images - 1, tf.int64),
      rounds=4,
  )


def batches(source, *, seed, batch_size, first_block, steps_per_block, context):
  """One worker's part of the batches of all steps, in blocks of steps.

  A block holds the batches of `steps_per_block` steps, so that they reach the
  device in one transfer and a compiled loop can run over them. Block k begins
  at step k * steps_per_block. Each element is one replica's part of a block.

  Args:
    source: `Images`.
    seed: integer.
    batch_size: images in the global batch, B, divisible by the replicas.
    first_block: block to start at; costs nothing to get to.
    steps_per_block: steps in a block, K.
    context: `tf.distribute.InputContext`.

  Returns:
    Endless `tf.data.Dataset` of dicts: image uint8 [K, b, H, W, C], label
    int32 [K, b], position int64 [K, b] in the global batch.
  """
  b = batch_size // context.num_replicas_in_sync
  local_replicas = (
      context.num_replicas_in_sync // context.num_input_pipelines
  )
  images = tf.constant(source.images)
  labels = tf.constant(source.labels)

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
        num_images=len(source.images),
    )
    indices = tf.reshape(indices, [steps_per_block, b])
    return {
        'image': tf.gather(images, indices),
        'label': tf.gather(labels, indices),
        'position': tf.tile(positions[None], [steps_per_block, 1]),
    }

  # As many elements as an int64 counts: longer than any run.
  dataset = tf.data.Dataset.range(np.iinfo(np.int64).max)
  options = tf.data.Options()
  # There is nothing to tune, and the end of a run may wait for the tuner's
  # thread forever (seen with TensorFlow 2.21).
  options.autotune.enabled = False
  return dataset.map(part).prefetch(local_replicas).with_options(options)
