"""Expensive rows, cached in shards: drawn images, features."""

import contextlib
import os
import re

import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime import npz
from ddpm.runtime import progress

# Rows per file: the most that a killed process loses.
ROWS = 512


class Shards:
  """Rows 0 to N - 1 of some arrays, in files of ROWS rows.

  A file is written whole or not at all, and its rows depend only on their
  numbers, so that killed work resumes at the first missing file. Only one file
  is in memory at a time.

  Args:
    directory: of the files.
    make: (start, stop) -> dict of arrays [stop - start, ...], the rows.
    total: N.
    name: of the rows, for the log while they are made.
  """

  def __init__(self, directory, make, *, total, name):
    self._directory = directory
    self._make = make
    self._total = total
    self._name = name

  def read(self, start, stop):
    """Yields the rows from start to stop, a file at a time: dicts of arrays.

    Raises:
      UserError: a file is damaged, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
      shown = None
      for first in range(start - start % ROWS, stop, ROWS):
        last = min(first + ROWS, self._total)
        arrays = self._load(first, last)
        if arrays is None:
          arrays = self.make(first, last)
          done = min(last, stop) - start
          if shown is None:
            shown = self._progress(stop - start, done)
            stack.callback(shown.close)
          shown.update(done)
        yield {
            name: array[max(start - first, 0) : stop - first]
            for name, array in arrays.items()
        }

  def _progress(self, total, done):
    return progress.Progress(
        total, unit='row', done=done, name=self._name,
        line=self._name + ': {done} of {total}',
    )  # fmt: skip

  def column(self, name, start, stop):
    """One array's rows, as an iterable of blocks."""
    return _Column(self, name, start, stop)

  def files(self):
    """First row of each file, and the one after its last, in order."""
    return [
        (first, min(first + ROWS, self._total))
        for first in range(0, self._total, ROWS)
    ]

  def missing(self):
    """Those of `files` that do not exist yet."""
    found = {}
    if tf.io.gfile.isdir(self._directory):
      for name in tf.io.gfile.listdir(self._directory):
        if match := re.fullmatch(r'rows_(\d+)_(\d+)\.npz', name):
          first, last = map(int, match.groups())
          found[first] = max(last, found.get(first, 0))
    return [rows for rows in self.files() if found.get(rows[0], 0) < rows[1]]

  def make(self, first, last):
    """Makes one of `files`, and returns its arrays.

    Raises:
      UserError: it cannot be written.
    """
    arrays = self._make(first, last)
    name = f'rows_{first:09d}_{last:09d}.npz'
    npz.write(os.path.join(self._directory, name), arrays)
    return arrays

  def _load(self, first, last):
    """The file of some rows, which may hold more of them, or None."""
    # The name says how many rows the file has.
    pattern = f'rows_{first:09d}_*.npz'
    for path in files.matching(self._directory, pattern):
      match = re.search(r'_(\d+)\.npz$', path)
      if match and int(match[1]) >= last:
        return npz.read(path)
    return None


class _Column:
  def __init__(self, shards, name, start, stop):
    self._shards = shards
    self._name = name
    self._start = start
    self._stop = stop

  def __iter__(self):
    for arrays in self._shards.read(self._start, self._stop):
      yield arrays[self._name]
