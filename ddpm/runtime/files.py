"""Files that are written whole or not at all."""

import os

import tensorflow as tf

from ddpm.runtime.errors import writing


def write_file(path, data):
  """Writes bytes to a path (or a bucket's), whole or not at all."""
  with writing(path):
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path + '.tmp', 'wb') as f:
      f.write(data)
    tf.io.gfile.rename(path + '.tmp', path, overwrite=True)
