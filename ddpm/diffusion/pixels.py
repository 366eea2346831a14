"""uint8 pixels to the model's [-1, 1], and back."""

import tensorflow as tf


def to_uint8(x):
  """[-1, 1] to [0, 255], rounded, as Ho's code: uint8 of the same shape."""
  x = tf.clip_by_value((x + 1.0) * 127.5, 0.0, 255.0)
  return tf.cast(tf.round(x), tf.uint8)
