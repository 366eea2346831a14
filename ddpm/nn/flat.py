"""The weights of a network as one flat vector [P], and its layout."""

import json
import math

import tensorflow as tf


class Layout:
  """Names and shapes of a network's weights, in the flat vector's order.

  Attributes:
    size: P, the number of weights.

  Args:
    model: a built Keras model, such as `unet.UNet`.
  """

  def __init__(self, model):
    self._weights = [
        (v.path, tuple(v.shape)) for v in model.trainable_variables
    ]
    self._sizes = [math.prod(shape) for _, shape in self._weights]
    self.size = sum(self._sizes)

  def to_json(self):
    """Names and shapes as JSON, by which a checkpoint is checked."""
    return json.dumps([[name, list(shape)] for name, shape in self._weights])

  def split(self, flat):
    """The vector [P] as the list of weights that `stateless_call` takes."""
    parts = tf.split(flat, self._sizes)
    return [
        tf.reshape(part, shape)
        for part, (_, shape) in zip(parts, self._weights)
    ]


def flatten(weights):
  """The vector [P] of a list of weights."""
  return tf.concat([tf.reshape(w, [-1]) for w in weights], axis=0)
