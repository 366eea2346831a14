"""Batches on one device and on several: the same rows."""

import numpy as np
import pytest
import tensorflow as tf

from ddpm import parallel
from ddpm import samplers


def mirrored(devices):
  return tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(devices)])


@pytest.mark.parametrize('devices', [1, 3])
@pytest.mark.parametrize('rows', [1, 11, 12, 30])
def test_rows_come_in_order(devices, rows):
  shapes = []

  def function(shared, x, y):
    shapes.append((x.shape.as_list(), y.shape.as_list()))
    return {'sum': shared + x[:, 0] + y, 'x': x}

  run = parallel.Batched(
      function, strategy=mirrored(devices), batch_size=4
  )
  x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
  y = np.arange(rows, dtype=np.float32)
  outputs = list(run(100.0, x, y))
  assert [len(o['x']) for o in outputs[:-1]] == [4 * devices] * (
      len(outputs) - 1
  )
  np.testing.assert_array_equal(np.concatenate([o['x'] for o in outputs]), x)
  sums = np.concatenate([o['sum'] for o in outputs])
  np.testing.assert_array_equal(sums, 100 + x[:, 0] + y)
  # Traced for one static shape.
  assert set(map(str, shapes)) == {'([4, 2], [4])'}


def test_images_of_a_seed_are_the_same_on_two_devices(network):
  def draw(strategy, batch_size):
    sampler = samplers.Sampler(
        network.model,
        network.layout,
        network.diffusion,
        sampler='ancestral',
        steps=3,
        variance='fixedlarge',
        batch_size=batch_size,
        jit_compile=True,
        strategy=strategy,
    )
    return np.concatenate(list(sampler(network.params, np.arange(5, 12))))

  one, two = draw(None, 7), draw(mirrored(2), 2)
  assert one.shape == two.shape and one.std() > 0
  differ = np.abs(one.astype(int) - two)
  assert differ.max() <= 1 and (differ > 0).mean() <= 1e-3
