"""Batches on one device and on several: the same rows."""

import numpy as np
import pytest
import tensorflow as tf

from ddpm.diffusion import solvers
from ddpm.runtime import device_map
from ddpm.runtime.errors import UserError
from ddpm.sampling import sampler as sampler_lib


def mirrored(devices):
  return tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(devices)])


@pytest.mark.parametrize('devices', [1, 3])
@pytest.mark.parametrize('rows', [1, 11, 12, 30])
def test_rows_come_in_order(devices, rows):
  shapes = []

  def function(shared, x, y):
    shapes.append((x.shape.as_list(), y.shape.as_list()))
    return {'sum': shared + x[:, 0] + y, 'x': x}

  run = device_map.DeviceMap(
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


class Device:
  """One that has memory for so many rows."""

  def __init__(self, rows):
    self._rows = rows

  def __call__(self, shared, x):
    if x.shape[0] > self._rows:
      raise tf.errors.ResourceExhaustedError(None, None, 'out of memory')
    return shared * x


@pytest.mark.parametrize('devices', [1, 2])
def test_a_batch_is_halved_until_it_fits(devices):
  run = device_map.DeviceMap(
      Device(3), strategy=mirrored(devices), batch_size=12
  )
  x = np.arange(20, dtype=np.float32)
  for _ in range(2):
    outputs = list(run(2.0, x))
    assert len(outputs[0]) == 3 * devices
    np.testing.assert_array_equal(np.concatenate(outputs), 2 * x)


def test_a_batch_of_one_that_does_not_fit():
  run = device_map.DeviceMap(Device(0), batch_size=4)
  with pytest.raises(UserError, match=r'too small for a batch of 1: out of me'):
    list(run(2.0, np.arange(3.0)))


@pytest.mark.parametrize(
    'rows, most, expected', [(512, None, 16), (7, None, 3), (512, 300, 171)]
)
def test_batch_size(rows, most, expected):
  assert device_map.batch_size(mirrored(3), rows, most) == expected


def test_images_of_a_seed_are_the_same_on_two_devices(network):
  def draw(strategy, batch_size):
    sampler = sampler_lib.Sampler(
        network.model,
        network.layout,
        network.diffusion,
        solvers.SamplerSpec('ancestral', 3),
        batch_size=batch_size,
        jit_compile=True,
        strategy=strategy,
    )
    return np.concatenate(list(sampler(network.params, np.arange(5, 12))))

  one, two = draw(None, 7), draw(mirrored(2), 2)
  assert one.shape == two.shape and one.std() > 0
  differ = np.abs(one.astype(int) - two)
  assert differ.max() <= 1 and (differ > 0).mean() <= 1e-3
