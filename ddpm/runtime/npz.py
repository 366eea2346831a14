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
from ddpm.runtime.errors import writing


def write(path, arrays):
  """Writes a dict of arrays, whole or not at all."""
  file = io.BytesIO()
  np.savez(file, **arrays)
  files.write_file(path, file.getvalue())


def read(path):
  """The arrays of an .npz file, or a UserError that it is damaged."""
  try:
    with tf.io.gfile.GFile(path, 'rb') as f:
      return dict(np.load(io.BytesIO(f.read())))
  except (OSError, ValueError, zipfile.BadZipFile) as e:
    raise UserError(f'{path} is damaged: delete it, and run again') from e


def write_blocks(path, columns, *, rows):
  """Writes a compressed .npz, whole or not at all, a block in memory at a time.

  Args:
    path: of the file, or a bucket's.
    columns: dict of each array's blocks, an iterable of NumPy arrays [n, ...].
    rows: of each array, all its blocks together.

  Raises:
    UserError: it cannot be written.
  """
  with writing(path):
    with (
        tf.io.gfile.GFile(path + '.tmp', 'wb') as f,
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
    tf.io.gfile.rename(path + '.tmp', path, overwrite=True)


class _Stream:
  """What zipfile takes for a file that cannot be gone back in.

  TensorFlow's files cannot, and say so with an error that zipfile lets through.
  """

  def __init__(self, file):
    self._file = file

  def write(self, data):
    self._file.write(data)
    return len(data)

  def flush(self):
    self._file.flush()


def read_blocks(path, name, *, rows):
  """Yields one array of what `write_blocks` wrote, so many rows at a time."""
  try:
    with (
        tf.io.gfile.GFile(path, 'rb') as f,
        zipfile.ZipFile(f) as archive,
        archive.open(f'{name}.npy') as entry,
    ):
      np.lib.format.read_magic(entry)
      shape, _, dtype = np.lib.format.read_array_header_1_0(entry)
      row_bytes = math.prod(shape[1:]) * dtype.itemsize
      for first in range(0, shape[0], rows):
        data = entry.read(min(rows, shape[0] - first) * row_bytes)
        yield np.frombuffer(data, dtype).reshape(-1, *shape[1:])
  except (OSError, EOFError, KeyError, ValueError, zlib.error,
          zipfile.BadZipFile) as e:  # fmt: skip
    raise UserError(f'{path} is damaged: delete it, and run again') from e
