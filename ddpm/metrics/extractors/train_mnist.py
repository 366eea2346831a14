"""Trains the classifier that ships as ddpm/metrics/extractors/mnist.npy.

  python -m ddpm.metrics.extractors.train_mnist --out=mnist.npy

Needs MNIST from tensorflow-datasets. Prints test accuracy and SHA-256. Scores
with different weights are not comparable.
"""

import hashlib
import io

from absl import flags
from absl import logging
from etils import epy
import numpy as np

from ddpm.runtime import program
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  import keras
  import tensorflow as tf

  from ddpm.data import catalog
  from ddpm.metrics.extractors import mnist
  from ddpm.nn import flat
  from ddpm.runtime import files

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string(
      'data_dir',
      '~/tensorflow_datasets',
      'The tensorflow-datasets folder that has MNIST.',
  )
  flags.DEFINE_string('out', None, 'The weights file to write.')


_EPOCHS = 15
_BATCH_SIZE = 128


def main():
  if not FLAGS.out:
    raise UserError('--out is missing: set it to the weights file to write')
  keras.utils.set_random_seed(0)
  tf.config.experimental.enable_op_determinism()
  train, test = (
      catalog.load(
          'tfds:mnist', data_dir=FLAGS.data_dir, split=split, image_size=28
      )
      for split in ('train', 'test')
  )
  model = mnist.network()
  # Slightly shifted digits should have similar features.
  shift = keras.layers.RandomTranslation(0.08, 0.08, fill_mode='constant')
  images = keras.Input(mnist.IMAGE_SHAPE)
  classifier = keras.Model(images, model(shift(images))[1])
  steps = _EPOCHS * len(train.images) // _BATCH_SIZE
  classifier.compile(
      keras.optimizers.Adam(
          keras.optimizers.schedules.CosineDecay(2e-3, steps)
      ),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      metrics=['accuracy'],
  )
  classifier.fit(
      train.images / np.float32(255),
      train.labels,
      batch_size=_BATCH_SIZE,
      epochs=_EPOCHS,
      verbose=2,
  )
  _, accuracy = classifier.evaluate(
      test.images / np.float32(255), test.labels, verbose=0
  )
  file = io.BytesIO()
  np.save(file, flat.flatten(model.trainable_variables).numpy())
  files.write_file(FLAGS.out, file.getvalue())
  sha256 = hashlib.sha256(file.getvalue()).hexdigest()
  logging.info('test accuracy %.2f %%, SHA-256 %s', 100 * accuracy, sha256)


if __name__ == '__main__':
  program.start(main, define_flags)
