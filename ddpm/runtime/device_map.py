"""Maps a batch function over many rows, on all devices of this machine."""

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# Rows that keep a device busy: a CPU core, and a GPU or TPU.
_CPU_BATCH_SIZE = 16
_BATCH_SIZE = 256


class DeviceMap:
  """Applies a function to many rows, one batch per replica at a time.

  Args:
    function: (shared, *arrays [batch_size, ...]) -> nest of tensors
      [batch_size, ...]. Rows must be independent. It is traced once, with
      static shapes.
    strategy: single-process `tf.distribute.Strategy`; None for the default
      device.
    batch_size: rows per replica; halved permanently whenever a batch does not
      fit in memory.
  """

  def __init__(self, function, *, strategy=None, batch_size):
    strategy = strategy or tf.distribute.get_strategy()
    self._strategy = strategy
    self._batch_size = batch_size
    # Traced once for all replicas and not inlined: TensorFlow optimizes one
    # large graph on a single core, which takes seconds per replica.
    self._function = tf.function(
        function,
        autograph=False,
        experimental_attributes={'_noinline': True},
    )
    self._run = tf.function(self._on_replicas, autograph=False)

  def __call__(self, shared, *arrays):
    """Maps the function over all rows.

    Args:
      shared: nest of tensors, passed whole to each replica.
      *arrays: NumPy arrays [N, ...].

    Yields:
      The function's outputs as NumPy arrays [n, ...], in order.

    Raises:
      UserError: even one row per replica does not fit in memory.
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
    """The outputs of each replica, for one batch of rows from `start` on."""
    replicas = self._strategy.num_replicas_in_sync
    index = np.arange(start, start + self._batch_size * replicas)
    # Pad the last batch by repeating the last row; __call__ cuts it off.
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
          'device memory is too small for a batch of 1: '
          f'{reason(error)}'
      ) from error
    self._batch_size = size // 2
    logging.warning(
        'device memory is too small for a batch of %d: retrying with %d',
        size, self._batch_size,
    )  # fmt: skip

  def _distribute(self, parts):
    """Places one part on each replica."""
    parts = iter(parts)
    return self._strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(next(parts))
    )


def batch_size(strategy, rows, most=None):
  """Batch size per replica that spreads rows over all replicas.

  Args:
    strategy: `tf.distribute.Strategy`.
    rows: number of rows.
    most: maximum batch size; None for the default of the device type.
  """
  if most is None:
    on_cpu = 'CPU' in strategy.extended.worker_devices[0]
    most = _CPU_BATCH_SIZE if on_cpu else _BATCH_SIZE
  return min(most, -(-rows // strategy.num_replicas_in_sync))
