"""A function of batches, on all devices of this machine."""

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# Enough rows to keep a device busy: a core, and what has them in thousands.
_CPU_BATCH_SIZE = 16
_BATCH_SIZE = 256


class DeviceMap:
  """Applies a function to many rows, a batch a replica at a time.

  Args:
    function: (shared, *arrays [batch_size, ...]) -> nest of tensors
      [batch_size, ...], whose rows do not depend on one another. It is traced
      once, for one static shape.
    strategy: `tf.distribute.Strategy` of one process; None for the default
      device.
    batch_size: rows of one replica; halved, for good, as often as they do not
      fit its memory.
  """

  def __init__(self, function, *, strategy=None, batch_size):
    strategy = strategy or tf.distribute.get_strategy()
    self._strategy = strategy
    self._batch_size = batch_size
    # Traced once for all replicas, and not made part of one large graph, which
    # TensorFlow would optimize on one core: it is seconds a replica.
    self._function = tf.function(
        function,
        autograph=False,
        experimental_attributes={'_noinline': True},
    )
    self._run = tf.function(self._on_replicas, autograph=False)

  def __call__(self, shared, *arrays):
    """Goes through all rows.

    Args:
      shared: nest of tensors that each replica takes whole.
      *arrays: NumPy arrays [N, ...].

    Yields:
      The function's outputs as NumPy arrays [n, ...], in order.

    Raises:
      UserError: not even one row a replica fits the memory.
    """
    shared = tf.nest.map_structure(tf.convert_to_tensor, shared)
    start, rows = 0, len(arrays[0])
    while start < rows:
      try:
        outputs = self._batch(shared, arrays, start)
      except tf.errors.ResourceExhaustedError as e:
        self._halve(e)
        continue
      step = self._batch_size * self._strategy.num_replicas_in_sync
      n = min(step, rows - start)
      yield tf.nest.map_structure(
          lambda *values, n=n: np.concatenate(values)[:n], *outputs
      )
      start += n

  def _batch(self, shared, arrays, start):
    """The outputs of each replica, for rows from start on."""
    replicas = self._strategy.num_replicas_in_sync
    index = np.arange(start, start + self._batch_size * replicas)
    # The last batch is filled up with rows that are cut off again.
    index = np.minimum(index, len(arrays[0]) - 1)
    parts = [
        self._distribute([a[i] for i in np.split(index, replicas)])
        for a in arrays
    ]
    outputs = self._strategy.experimental_local_results(
        self._run(shared, *parts)
    )
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)

  def _on_replicas(self, shared, *parts):
    firsts = [self._strategy.experimental_local_results(p)[0] for p in parts]
    function = self._function.get_concrete_function(
        *tf.nest.map_structure(tf.TensorSpec.from_tensor, (shared, *firsts))
    )
    return self._strategy.run(function, (shared, *parts))

  def _halve(self, error):
    size = self._batch_size
    if size == 1:
      raise UserError(
          'the memory of a device is too small for a batch of 1: '
          f'{reason(error)}'
      ) from error
    self._batch_size = size // 2
    logging.warning(
        'the memory of a device is too small for a batch of %d: going on with'
        ' %d', size, self._batch_size,
    )  # fmt: skip

  def _distribute(self, parts):
    """One part for each replica."""
    parts = iter(parts)
    return self._strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(next(parts))
    )


def batch_size(strategy, rows, most=None):
  """A batch of one replica, so that all replicas share in so many rows.

  Args:
    strategy: `tf.distribute.Strategy`.
    rows: number of them.
    most: rows of a batch; None for what a device of that kind has use for.
  """
  if most is None:
    on_cpu = 'CPU' in strategy.extended.worker_devices[0]
    most = _CPU_BATCH_SIZE if on_cpu else _BATCH_SIZE
  return min(most, -(-rows // strategy.num_replicas_in_sync))
