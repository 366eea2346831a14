"""Files that are written whole or not at all."""

import os

import tensorflow as tf

from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing


def write_file(path, data):
  """Writes bytes to a path (or a bucket's), whole or not at all."""
  with writing(path):
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path + '.tmp', 'wb') as f:
      f.write(data)
    tf.io.gfile.rename(path + '.tmp', path, overwrite=True)


def make_writable_folder(path, *, name='the folder'):
  """Makes a folder, if it is not there.

  Args:
    path: of the folder, or a bucket's.
    name: what the user calls it, for an error: '--workdir'.

  Raises:
    UserError: it cannot be made, or not be written to.
  """
  with writing(f'{name} {path}'):
    tf.io.gfile.makedirs(path)
  # Folders of a bucket have no permissions to ask for.
  if os.path.isdir(path) and not os.access(path, os.W_OK):
    raise UserError(f'{name} {path} cannot be written: no permission')
