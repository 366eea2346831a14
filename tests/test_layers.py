"""Layers whose gradient is written out, against TensorFlow's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ddpm.nn import layers

SHAPE, GROUPS = (3, 5, 4, 12), 4


def inputs(dtype='float32'):
  rng = np.random.default_rng(0)
  x, upstream = (
      tf.cast(rng.normal(1.0, 2.0, SHAPE), dtype) for _ in range(2)
  )
  gamma, beta = (tf.constant(rng.normal(size=12), tf.float32) for _ in range(2))
  scale, shift = (
      tf.constant(rng.normal(size=(3, 12)), tf.float32) for _ in range(2)
  )
  return x, gamma, beta, scale, shift, upstream


def run(layer, function, dtype='float32'):
  """Output, and gradients of x, gamma, beta, scale and shift."""
  x, gamma, beta, scale, shift, upstream = inputs(dtype)
  layer.build(SHAPE)
  layer.gamma.assign(gamma)
  layer.beta.assign(beta)
  sources = [x, layer.gamma.value, layer.beta.value, scale, shift]
  with tf.GradientTape() as tape:
    tape.watch(sources)
    y = function(layer, x, scale, shift)
  return [y, *tape.gradient(y, sources, upstream)]


@pytest.mark.parametrize('swish', [True, False])
def test_group_norm_is_kerass_with_its_gradient(swish):
  def expected(layer, x, scale, shift):
    y = layer(x) * (1 + scale[:, None, None]) + shift[:, None, None]
    return tf.nn.silu(y) if swish else y

  wanted = run(
      keras.layers.GroupNormalization(GROUPS, epsilon=1e-6), expected
  )
  layer = layers.GroupNorm(GROUPS, swish=swish, epsilon=1e-6)
  got = run(layer, lambda layer, *args: layer(*args))
  for a, b in zip(got, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_group_norm_without_scale_and_shift():
  x = inputs()[0]
  keras_layer = keras.layers.GroupNormalization(GROUPS, epsilon=1e-6)
  layer = layers.GroupNorm(GROUPS, epsilon=1e-6)
  np.testing.assert_allclose(
      layer(x), tf.nn.silu(keras_layer(x)), rtol=1e-5, atol=1e-6
  )


def test_group_norm_in_bfloat16_is_float32s_rounded():
  layer = layers.GroupNorm(GROUPS, epsilon=1e-6, dtype='mixed_bfloat16')
  got = run(layer, lambda layer, *args: layer(*args), 'bfloat16')
  layer = layers.GroupNorm(GROUPS, epsilon=1e-6)
  wanted = run(layer, lambda layer, *args: layer(*args))
  assert [each.dtype.name for each in got] == ['bfloat16'] * 2 + ['float32'] * 4
  for a, b in zip(got, wanted, strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(tf.cast(a, tf.float32), b, atol=0.02 * scale)
