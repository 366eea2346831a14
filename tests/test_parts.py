"""Rows on disk: made once, whole or not at all."""

import numpy as np
import pytest

from ddpm.errors import UserError
from ddpm.metrics import parts

ROWS = parts.ROWS


class Maker:
  """Makes rows that hold their own numbers, and remembers which it made."""

  def __init__(self, fails_at=None):
    self.made = []
    self._fails_at = fails_at

  def __call__(self, start, stop):
    if start == self._fails_at:
      raise KeyboardInterrupt
    self.made.append((start, stop))
    return {'number': np.arange(start, stop), 'square': np.arange(start, stop)}


def numbers(directory, maker, total, start=0, stop=None):
  kept = parts.Parts(str(directory), maker, total=total, what='numbers')
  return np.concatenate(list(kept.column('number', start, stop or total)))


def test_goes_on_where_it_was_killed(tmp_path):
  total = 3 * ROWS + 7
  with pytest.raises(KeyboardInterrupt):
    numbers(tmp_path, Maker(fails_at=2 * ROWS), total)
  maker = Maker()
  np.testing.assert_array_equal(
      numbers(tmp_path, maker, total), np.arange(total)
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


def test_a_damaged_file_is_named(tmp_path):
  numbers(tmp_path, Maker(), 5)
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(UserError, match=f'{path.name} is damaged: delete it'):
    numbers(tmp_path, Maker(), 5)
