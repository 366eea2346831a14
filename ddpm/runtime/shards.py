"""Rows that were dear to compute, kept on disk: drawn images, features."""

import os
import re
import time

from absl import logging
import tensorflow as tf

from ddpm.runtime import npz
from ddpm.runtime import progress

# Rows of a file. A process that is killed loses no more than these.
ROWS = 512


class Shards:
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
            logging.INFO, '%s: %d of %d, %.1f a second', progress.LOG_SECONDS,
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
    npz.write(os.path.join(self._directory, name), arrays)
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
        return npz.read(path)
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
