"""uint8 pixels to the model's [-1, 1], and back."""

import tensorflow as tf


def from_uint8(images):
  """[0, 255] to [-1, 1]: float32 of the same shape."""
  return tf.cast(images, tf.float32) / 127.5 - 1.0


def clip(x0):
  """Clips an estimate of x_0 to [-1, 1], as Ho's code does.

  What is not finite stays so: a network that overflows must not draw black.
  """
  return tf.where(tf.math.is_finite(x0), tf.clip_by_value(x0, -1.0, 1.0), x0)


def to_uint8(x):
  """[-1, 1] to [0, 255], clipped and rounded as in Ho's code."""
  x = tf.clip_by_value((x + 1.0) * 127.5, 0.0, 255.0)
  return tf.cast(tf.round(x), tf.uint8)
