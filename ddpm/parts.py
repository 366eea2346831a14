"""Rows that were dear to compute, kept on disk: drawn images, features."""

import io
import itertools
import math
import os
import re
import time
import zipfile
import zlib

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm import writers
from ddpm.errors import UserError
from ddpm.errors import writing

# Rows of a file. A process that is killed loses no more than these.
ROWS = 512

_LOG_SECONDS = 10


class Parts:
  """Rows 0 to N - 1 of some arrays, in files of ROWS rows.

  A file is written whole or not at all, and its rows depend on their numbers
  alone, so that work which was killed goes on at the first file that is
  missing. Only one file is in memory at a time.

  Args:
    directory: of the files.
    make: (start, stop) -> dict of arrays [stop - start, ...], the rows.
    total: N.
    what: the rows are, for the log, while they are made.
  """

  def __init__(self, directory, make, *, total, what):
    self._directory = directory
    self._make = make
    self._total = total
    self._what = what

  def read(self, start, stop):
    """Yields the rows from start to stop, a file at a time: dicts of arrays.

    Raises:
      UserError: a file is damaged, or cannot be written.
    """
    for first in range(start - start % ROWS, stop, ROWS):
      last = min(first + ROWS, self._total)
      arrays = self._load(first, last)
      if arrays is None:
        started = time.monotonic()
        arrays = self.make(first, last)
        logging.log_every_n_seconds(
            logging.INFO, '%s: %d of %d, %.1f a second', _LOG_SECONDS,
            self._what, last, self._total,
            (last - first) / (time.monotonic() - started),
        )  # fmt: skip
      yield {
          name: array[max(start - first, 0) : stop - first]
          for name, array in arrays.items()
      }

  def column(self, name, start, stop):
    """One array's rows, to be walked through any number of times."""
    return _Column(self, name, start, stop)

  def files(self):
    """First row of each file, and the one after its last, in order."""
    return [
        (first, min(first + ROWS, self._total))
        for first in range(0, self._total, ROWS)
    ]

  def missing(self):
    """Those of `files` that are not there yet."""
    there = {}
    if tf.io.gfile.isdir(self._directory):
      for name in tf.io.gfile.listdir(self._directory):
        if match := re.fullmatch(r'rows_(\d+)_(\d+)\.npz', name):
          first, last = map(int, match.groups())
          there[first] = max(last, there.get(first, 0))
    return [rows for rows in self.files() if there.get(rows[0], 0) < rows[1]]

  def make(self, first, last):
    """Makes one of `files`, and returns its arrays.

    Raises:
      UserError: it cannot be written.
    """
    arrays = self._make(first, last)
    name = f'rows_{first:09d}_{last:09d}.npz'
    write_npz(os.path.join(self._directory, name), arrays)
    return arrays

  def _load(self, first, last):
    """The file of some rows, which may hold more of them, or None."""
    if not tf.io.gfile.isdir(self._directory):
      return None
    # A listing, since a name says how many rows there are.
    pattern = os.path.join(self._directory, f'rows_{first:09d}_*.npz')
    for path in tf.io.gfile.glob(pattern):
      match = re.search(r'_(\d+)\.npz$', path)
      if match and int(match[1]) >= last:
        return read_npz(path)
    return None


class _Column:
  def __init__(self, parts, name, start, stop):
    self._parts = parts
    self._name = name
    self._start = start
    self._stop = stop

  def __iter__(self):
    for arrays in self._parts.read(self._start, self._stop):
      yield arrays[self._name]


def write_npz(path, arrays):
  """Writes a dict of arrays, whole or not at all."""
  file = io.BytesIO()
  np.savez(file, **arrays)
  writers.write_file(path, file.getvalue())


def read_npz(path):
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


def read_blocks(path, name):
  """Yields one array of what `write_blocks` wrote, ROWS rows at a time."""
  try:
    with (
        tf.io.gfile.GFile(path, 'rb') as f,
        zipfile.ZipFile(f) as archive,
        archive.open(f'{name}.npy') as entry,
    ):
      np.lib.format.read_magic(entry)
      shape, _, dtype = np.lib.format.read_array_header_1_0(entry)
      row_bytes = math.prod(shape[1:]) * dtype.itemsize
      for first in range(0, shape[0], ROWS):
        data = entry.read(min(ROWS, shape[0] - first) * row_bytes)
        yield np.frombuffer(data, dtype).reshape(-1, *shape[1:])
  except (OSError, EOFError, KeyError, ValueError, zlib.error,
          zipfile.BadZipFile) as e:  # fmt: skip
    raise UserError(f'{path} is damaged: delete it, and run again') from e
