"""A small classifier of handwritten digits, with weights that ship with ddpm.

No published MNIST score has an available extractor, so ddpm defines its own,
fixed to the bit: train_mnist.py made mnist.npy from the 60,000 training digits.
Its accuracy on the 10,000 test digits is 99.55 %.
"""

import hashlib
import importlib.resources
import io

import keras
import numpy as np
import tensorflow as tf

from ddpm.metrics.extractors.base import check_sha256
from ddpm.metrics.extractors.base import Extractor
from ddpm.nn import flat
from ddpm.runtime import words
from ddpm.runtime.errors import BadArgument

IMAGE_SHAPE = (28, 28, 1)
SHA256 = '2c7077bdd6ea1c5cbe6cb6361df96a851cd3e2c7c8f5c5f61108bb99e651627e'


def network():
  """[B, 28, 28, 1] in [0, 1] -> features [B, 128], logits [B, 10]."""
  layers = keras.layers
  x = images = keras.Input(IMAGE_SHAPE)
  x = layers.Conv2D(32, 3, activation='relu')(x)
  x = layers.Conv2D(32, 3, strides=2, activation='relu')(x)
  x = layers.Dropout(0.2)(x)
  x = layers.Conv2D(64, 3, activation='relu')(x)
  x = layers.MaxPool2D()(x)
  x = layers.Dropout(0.25)(x)
  x = layers.Flatten()(x)
  features = layers.Dense(128, activation='relu')(x)
  x = layers.Dropout(0.5)(features)
  return keras.Model(images, [features, layers.Dense(10)(x)])


def extractor(image_shape):
  """Returns the `Extractor`, which takes 28 x 28 x 1 images only.

  Raises:
    UserError: another image shape, or a weights file with the wrong hash.
  """
  if tuple(image_shape) != IMAGE_SHAPE:
    raise BadArgument(
        'features is mnist, which takes images of 28 x 28 x 1, but these are'
        f' {words.dimensions(image_shape)}: use inception or efficientnet'
    )
  file = importlib.resources.files('ddpm.metrics.extractors') / 'mnist.npy'
  data = file.read_bytes()
  sha256 = hashlib.sha256(data).hexdigest()
  check_sha256(file, sha256, SHA256, fix='reinstall ddpm')
  model = network()
  weights = flat.Layout(model).split(np.load(io.BytesIO(data)))
  # Dropout's seeds, unused here.
  others = [v.numpy() for v in model.non_trainable_variables]

  def function(weights, images):
    x = tf.cast(images, tf.float32) / 255.0
    (features, logits), _ = model.stateless_call(
        weights, others, x, training=False
    )
    return features, tf.nn.softmax(logits)

  return Extractor(
      name='mnist',
      sha256=sha256,
      resize='none',
      weights=[w.numpy() for w in weights],
      function=function,
      labels=True,
  )
