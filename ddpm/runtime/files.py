"""Atomic file writes, and folders."""

import contextlib
import os
import uuid

import tensorflow as tf

from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing


def write_file(path, data):
  """Writes bytes to a path, local or in a bucket, atomically."""
  with open_atomically(path) as f:
    f.write(data)


@contextlib.contextmanager
def open_atomically(path):
  """Opens a file to write, which appears under its name when it is whole.

  Makes its folder if it is missing. Of several processes that write the same
  file at once, the last one's stays.

  Args:
    path: local or in a bucket.

  Yields:
    `tf.io.gfile.GFile`.

  Raises:
    UserError: the file cannot be written.
  """
  with writing(path):
    if folder := os.path.dirname(path):
      tf.io.gfile.makedirs(folder)
    part = f'{path}.{uuid.uuid4().hex[:8]}.tmp'
    try:
      with tf.io.gfile.GFile(part, 'wb') as f:
        yield f
      tf.io.gfile.rename(part, path, overwrite=True)
    except BaseException:
      with contextlib.suppress(tf.errors.OpError):
        tf.io.gfile.remove(part)
      raise


def is_in_bucket(path):
  """Whether a path is in a bucket, such as gs://name."""
  return '://' in path


def stamp(path):
  """A string that changes with a file's contents: its size and time.

  Args:
    path: local, with a name in any encoding, or in a bucket. If there is no
      such file, that is its stamp: reading it says why.
  """
  try:
    if is_in_bucket(path):
      stat = tf.io.gfile.stat(path)
      return f'{stat.length} {stat.mtime_nsec}'
    stat = os.stat(path)
    return f'{stat.st_size} {stat.st_mtime_ns}'
  except (OSError, tf.errors.OpError):
    return 'gone'


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
