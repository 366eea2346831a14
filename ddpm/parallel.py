"""A function of batches, on all devices of this machine."""

import numpy as np
import tensorflow as tf

# Enough rows to keep a device busy.
_BATCH_SIZE = 64


class Batched:
  """Applies a function to many rows, a batch a replica at a time.

  Args:
    function: (shared, *arrays [batch_size, ...]) -> nest of tensors
      [batch_size, ...], whose rows do not depend on one another. It is traced
      once a replica, for one static shape.
    strategy: `tf.distribute.Strategy` of one process; None for the default
      device.
    batch_size: rows of one replica.
  """

  def __init__(self, function, *, strategy=None, batch_size):
    strategy = strategy or tf.distribute.get_strategy()
    self._strategy = strategy
    self._batch_size = batch_size
    self._run = tf.function(
        lambda *args: strategy.run(function, args), autograph=False
    )

  def __call__(self, shared, *arrays):
    """Goes through all rows.

    Args:
      shared: nest of tensors that each replica takes whole.
      *arrays: NumPy arrays [N, ...].

    Yields:
      The function's outputs as NumPy arrays [n, ...], in order.
    """
    shared = tf.nest.map_structure(tf.convert_to_tensor, shared)
    size = self._batch_size
    rows = len(arrays[0])
    step = size * self._strategy.num_replicas_in_sync
    for start in range(0, rows, step):
      # The last batch is filled up with rows that are cut off again.
      index = np.minimum(np.arange(start, start + step), rows - 1)
      parts = [
          self._distribute([a[i] for i in np.split(index, step // size)])
          for a in arrays
      ]
      outputs = self._strategy.experimental_local_results(
          self._run(shared, *parts)
      )
      n = min(step, rows - start)
      yield tf.nest.map_structure(
          lambda *values, n=n: np.concatenate([v.numpy() for v in values])[:n],
          *outputs,
      )

  def _distribute(self, parts):
    """One part for each replica."""
    parts = iter(parts)
    return self._strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(next(parts))
    )


def batch_size(strategy, rows):
  """A batch of one replica, so that all replicas share in so many rows."""
  return min(_BATCH_SIZE, -(-rows // strategy.num_replicas_in_sync))
