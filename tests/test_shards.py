"""Rows on disk: made once, whole or not at all."""

import numpy as np
import pytest

from ddpm.runtime import shards
from ddpm.runtime.errors import UserError

ROWS = shards.ROWS


class Maker:
  """Makes rows that hold their own numbers, and remembers which it made."""

  def __init__(self, fails_at=None):
    self.made = []
    self._fails_at = fails_at

  def __call__(self, start, stop):
    if start == self._fails_at:
      raise KeyboardInterrupt
    self.made.append((start, stop))
    rows = np.arange(start, stop)
    return {'number': rows, 'square': rows**2}


def column(name, directory, maker, total, start=0, stop=None):
  kept = shards.Shards(str(directory), maker, total=total, name='numbers')
  return np.concatenate(list(kept.column(name, start, stop or total)))


def numbers(*args):
  return column('number', *args)


def test_goes_on_where_it_was_killed(tmp_path):
  total = 3 * ROWS + 7
  with pytest.raises(KeyboardInterrupt):
    numbers(tmp_path, Maker(fails_at=2 * ROWS), total)
  maker = Maker()
  np.testing.assert_array_equal(
      numbers(tmp_path, maker, total), np.arange(total)
  )
  np.testing.assert_array_equal(
      column('square', tmp_path, maker, total), np.arange(total) ** 2
  )
  assert maker.made == [(2 * ROWS, 3 * ROWS), (3 * ROWS, total)]


def test_makes_what_is_asked_for_and_nothing_twice(tmp_path):
  maker = Maker()
  start, stop = ROWS - 3, ROWS + 5
  np.testing.assert_array_equal(
      numbers(tmp_path, maker, 4 * ROWS, start, stop), np.arange(start, stop)
  )
  assert maker.made == [(0, ROWS), (ROWS, 2 * ROWS)]
  numbers(tmp_path, maker, 4 * ROWS, 3, 9)
  assert len(maker.made) == 2


def test_fewer_rows_are_there_and_more_rows_are_made(tmp_path):
  maker = Maker()
  numbers(tmp_path, maker, ROWS + 9)
  assert len(numbers(tmp_path, maker, ROWS + 4)) == ROWS + 4
  assert len(maker.made) == 2
  assert len(numbers(tmp_path, maker, ROWS + 90)) == ROWS + 90
  assert maker.made[2:] == [(ROWS, ROWS + 90)]


def test_progress_is_that_of_the_rows_asked_for(tmp_path, monkeypatch):
  bars = []

  class Bar:
    def __init__(self, total, *, done, name, **kwargs):
      bars.append(self)
      self.said, self.is_open = [(name, done, total)], True

    def update(self, done):
      self.said.append(done)

    def close(self):
      self.is_open = False

  monkeypatch.setattr(shards.progress, 'Progress', Bar)
  maker = Maker()
  numbers(tmp_path, maker, 4 * ROWS, ROWS, 2 * ROWS + 5)
  numbers(tmp_path, maker, 4 * ROWS, ROWS, 2 * ROWS)
  numbers(tmp_path, maker, 4 * ROWS, 0, 3 * ROWS)
  total = ROWS + 5
  assert [bar.said for bar in bars] == [
      [('numbers', ROWS, total), ROWS, total],
      [('numbers', ROWS, 3 * ROWS), ROWS],
  ]
  assert not any(bar.is_open for bar in bars)


def test_a_damaged_file_is_named(tmp_path):
  numbers(tmp_path, Maker(), 5)
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(UserError, match=f'{path.name} is damaged: delete it'):
    numbers(tmp_path, Maker(), 5)


def test_files_that_are_missing_are_named_and_made(tmp_path):
  maker = Maker()
  kept = shards.Shards(str(tmp_path), maker, total=2 * ROWS + 7, name='numbers')
  assert kept.missing() == kept.files()
  kept.make(ROWS, 2 * ROWS)
  assert kept.missing() == [(0, ROWS), (2 * ROWS, 2 * ROWS + 7)]
  numbers(tmp_path, maker, 2 * ROWS + 7)
  assert kept.missing() == [] and len(maker.made) == 3
