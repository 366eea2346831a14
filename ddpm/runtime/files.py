"""Atomic file writes, and folders."""

import contextlib
import fnmatch
import functools
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


def matching(folder, pattern):
  """Sorted paths of a folder's files by a pattern of their names, 'job_*'.

  Unlike a glob, it takes the folder's name as it is. A missing folder has none.
  """
  names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
  found = sorted(fnmatch.filter(names, pattern))
  return [os.path.join(folder, name) for name in found]


def without_wildcards(path):
  """A path to the same file, for TensorFlow's checkpoints.

  They take *, ?, [ and \\ in a path for wildcards.

  Args:
    path: in a folder that exists, or in a bucket.

  Raises:
    UserError: it has wildcards, and the system is not Linux.
  """
  folder, name = os.path.split(path)
  if is_in_bucket(path) or not set(folder) & set('*?[\\'):
    return path
  if not os.path.isdir('/proc/self/fd'):
    raise UserError(
        f'{folder} has one of * ? [ \\ in its name, with which TensorFlow'
        ' cannot save: use another name'
    )
  inode = os.stat(folder).st_ino  # Another folder may come in its place.
  return os.path.join(_opened(os.path.abspath(folder), inode), name)


@functools.cache
def _opened(folder, inode):
  """A folder's path by its number among the open files of this process."""
  del inode  # Only for the cache.
  return f'/proc/self/fd/{os.open(folder, os.O_RDONLY)}'


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
