"""uint8 pixels to the model's [-1, 1], and back."""

import tensorflow as tf


def from_uint8(images):
  """[0, 255] to [-1, 1]: float32 of the same shape."""
  return tf.cast(images, tf.float32) / 127.5 - 1.0


def to_uint8(x):
  """[-1, 1] to [0, 255], clipped and rounded as in Ho's code."""
  x = tf.clip_by_value((x + 1.0) * 127.5, 0.0, 255.0)
  return tf.cast(tf.round(x), tf.uint8)
