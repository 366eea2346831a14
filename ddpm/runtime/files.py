"""Atomic file writes, and folders."""

import os

import tensorflow as tf

from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing


def write_file(path, data):
  """Writes bytes to a path, local or in a bucket, atomically."""
  with writing(path):
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path + '.tmp', 'wb') as f:
      f.write(data)
    tf.io.gfile.rename(path + '.tmp', path, overwrite=True)


def make_writable_folder(path, *, name='the folder'):
  """Makes a folder if it is missing, and checks that it is writable.

  Args:
    path: the folder's path, local or in a bucket.
    name: its name in error messages, such as '--workdir'.

  Raises:
    UserError: it cannot be made or written.
  """
  with writing(f'{name} {path}'):
    tf.io.gfile.makedirs(path)
  # Folders in buckets have no permissions to check.
  if os.path.isdir(path) and not os.access(path, os.W_OK):
    raise UserError(f'{name} {path} cannot be written: no permission')
