"""Stateless random numbers from counter-based keys.

The design and names are JAX's. A *key* is a pair of 32-bit words; `fold_in`
derives a new key from a key and a number; `uniform` and `normal` turn a key
into values. The same key gives the same values on every device, with and
without XLA, in any batch. TensorFlow's stateless normals do not guarantee this.

The generator is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"), in plain integer ops that XLA can fuse.

Keys are uint32 [..., 2]; the leading axes are a batch of keys, usually one per
example.
"""

import math

import numpy as np
import tensorflow as tf

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
# The counter's high word for values. `fold_in` takes numbers below 2^63, with
# a high word below 2^31, so values and derived keys never share a counter.
_VALUES = 0x80000000


def _threefry2x32(key, counter):
  """Encrypts two counter words with a two-word key.

  Args:
    key: pair of uint32 tensors.
    counter: pair of uint32 tensors that broadcast with the key's.

  Returns:
    Pair of uint32 tensors of the broadcast shape.
  """
  k0, k1 = key
  schedule = (k0, k1, k0 ^ k1 ^ np.uint32(_PARITY))
  x0, x1 = counter[0] + k0, counter[1] + k1
  for group in range(5):
    for i in range(4):
      rotation = _ROTATIONS[4 * (group % 2) + i]
      x0 = x0 + x1
      x1 = tf.bitwise.bitwise_or(
          tf.bitwise.left_shift(x1, np.uint32(rotation)),
          tf.bitwise.right_shift(x1, np.uint32(32 - rotation)),
      )
      x1 = tf.bitwise.bitwise_xor(x0, x1)
    x0 = x0 + schedule[(group + 1) % 3]
    x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
  return x0, x1


def key(seed):
  """Returns the key of each seed.

  Args:
    seed: integer from 0 to 2^63 - 1, or an int64 tensor [...] of them.

  Returns:
    uint32 [..., 2].
  """
  return tf.stack(_words(seed), axis=-1)


def fold_in(key, data):
  """Derives new keys from keys and numbers.

  Args:
    key: uint32 [..., 2].
    data: integer from 0 to 2^63 - 1, or a tensor of them that broadcasts with
      the key's leading axes.

  Returns:
    uint32 [..., 2] of the broadcast shape.
  """
  high, low = _words(data)
  x0, x1 = _threefry2x32((key[..., 0], key[..., 1]), (high, low))
  return tf.stack([x0, x1], axis=-1)


def uniform(key, shape):
  """Uniform float32 values in [0, 1), multiples of 2^-24.

  Args:
    key: uint32 [..., 2].
    shape: static shape of the values per key.

  Returns:
    float32 [..., *shape].
  """
  size = math.prod(shape)
  x0, x1 = _bits(key, (size + 1) // 2)
  bits = tf.concat([x0, x1], axis=-1)[..., :size]
  return _reshape(_fraction(bits), shape)


def normal(key, shape):
  """Standard normal float32 values, by the Box-Muller transform.

  Args:
    key: uint32 [..., 2].
    shape: static shape of the values per key.

  Returns:
    float32 [..., *shape].
  """
  size = math.prod(shape)
  x0, x1 = _bits(key, (size + 1) // 2)
  # Shifted up by half a step, so that the logarithm's argument is never 0.
  radius = tf.sqrt(-2.0 * tf.math.log(_fraction(x0) + 2.0**-25))
  angle = (2.0 * math.pi) * _fraction(x1)
  values = tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=-1)
  return _reshape(values[..., :size], shape)


def _words(data):
  data = tf.convert_to_tensor(data, dtype_hint=tf.int64)
  data = tf.cast(data, tf.int64)
  high = tf.cast(tf.bitwise.right_shift(data, np.int64(32)), tf.uint32)
  low = tf.cast(tf.bitwise.bitwise_and(data, np.int64(0xFFFFFFFF)), tf.uint32)
  return high, low


def _bits(key, n):
  """Two uint32 tensors [..., n] of random bits."""
  counter = tf.cast(tf.range(n), tf.uint32)
  words = (key[..., 0:1], key[..., 1:2])
  return _threefry2x32(words, (np.uint32(_VALUES), counter))


def _fraction(bits):
  # A float32 mantissa holds 24 bits. The cast goes through int32 because not
  # every device converts uint32 to float.
  bits = tf.cast(tf.bitwise.right_shift(bits, np.uint32(8)), tf.int32)
  return tf.cast(bits, tf.float32) * 2.0**-24


def _reshape(values, shape):
  return tf.reshape(values, tf.concat([tf.shape(values)[:-1], shape], axis=0))
