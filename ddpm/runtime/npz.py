"""NumPy's .npz files, whole or in blocks, on disks and in buckets."""

import io
import itertools
import math
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime.errors import UserError

# What reading a damaged archive may raise.
DAMAGE = (
    OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error,
    tf.errors.OpError,
)  # fmt: skip


def write(path, arrays):
  """Writes a dict of arrays, whole or not at all."""
  file = io.BytesIO()
  np.savez(file, **arrays)
  files.write_file(path, file.getvalue())


def read(path):
  """The arrays of an .npz file.

  Raises:
    UserError: it is damaged.
  """
  try:
    with tf.io.gfile.GFile(path, 'rb') as f:
      return dict(np.load(io.BytesIO(f.read())))
  except DAMAGE as e:
    raise UserError(f'{path} is damaged: delete it, and run again') from e


def write_blocks(path, columns, *, rows):
  """Writes a compressed .npz, whole or not at all, one block in memory.

  Args:
    path: local or in a bucket.
    columns: dict of each array's blocks, an iterable of NumPy arrays [n, ...].
    rows: of each array.

  Raises:
    UserError: it cannot be written.
  """
  with (
      files.open_atomically(path) as f,
      zipfile.ZipFile(_Stream(f), 'w', zipfile.ZIP_DEFLATED) as archive,
  ):
    for name, blocks in columns.items():
      blocks = iter(blocks)
      first = next(blocks)
      header = {
          'descr': np.lib.format.dtype_to_descr(first.dtype),
          'fortran_order': False,
          'shape': (rows, *first.shape[1:]),
      }
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for block in itertools.chain([first], blocks):
          entry.write(np.ascontiguousarray(block).data)


class _Stream:
  """A file that zipfile does not seek in.

  TensorFlow's files cannot seek when writing, and raise an error that zipfile
  does not expect.
  """

  def __init__(self, file):
    self._file = file

  def write(self, data):
    self._file.write(data)
    return len(data)

  def flush(self):
    self._file.flush()


class ArrayReader:
  """One array of an .npz archive, read a block of rows at a time.

  The array is streamed, not kept: reading backwards starts again.

  Attributes:
    shape: of the array.
    dtype: of the array.

  Args:
    archive: `zipfile.ZipFile`.
    name: of the array.

  Raises:
    One of DAMAGE: no such array, or it is damaged; so does `read`.
  """

  def __init__(self, archive, name):
    self._archive = archive
    self._name = name
    self._open()

  def _open(self):
    self._entry = self._archive.open(f'{self._name}.npy')
    version = np.lib.format.read_magic(self._entry)
    if version == (1, 0):
      header = np.lib.format.read_array_header_1_0(self._entry)
    else:
      header = np.lib.format.read_array_header_2_0(self._entry)
    self.shape, is_fortran, self.dtype = header
    if is_fortran:
      raise ValueError('its array is in Fortran order')
    self._at = 0

  def read(self, start, stop):
    """Rows start to stop - 1, fewer at the end."""
    if start < self._at:
      self._open()
    row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
    if start > self._at:
      self._entry.seek((start - self._at) * row_bytes, io.SEEK_CUR)
    stop = min(stop, self.shape[0])
    data = self._entry.read((stop - start) * row_bytes)
    self._at = stop
    return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


def read_blocks(path, name, *, rows):
  """Yields an array of an .npz file in blocks of `rows` rows.

  Raises:
    UserError: the file is damaged.
  """
  try:
    with (
        tf.io.gfile.GFile(path, 'rb') as f,
        zipfile.ZipFile(f) as archive,
    ):
      array = ArrayReader(archive, name)
      for first in range(0, array.shape[0], rows):
        yield array.read(first, first + rows)
  except DAMAGE as e:
    raise UserError(f'{path} is damaged: delete it, and run again') from e
