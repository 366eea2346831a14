"""Progress without a terminal, and quantities in words."""

import logging

import pytest

from ddpm.runtime import progress
from ddpm.runtime import words


@pytest.fixture
def clock(monkeypatch):
  """The time that `progress` sees, in seconds."""
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def test_a_line_every_ten_seconds_with_speed_and_time_left(clock, caplog):
  caplog.set_level(logging.INFO, 'absl')
  shown = progress.Progress(
      1000, unit='image', done=200, line='{done} of {total} images'
  )
  # The first batch took a minute to compile, and has no speed.
  clock[0] += 60
  shown.update(300)
  assert not caplog.messages
  for done in (320, 340, 360, 380):
    clock[0] += 5
    shown.update(done)
  assert caplog.messages == [
      '320 of 1000 images  4.0 images/s  3 min left',
      '360 of 1000 images  4.0 images/s  3 min left',
  ]


def test_a_line_for_each_note(clock, caplog):
  caplog.set_level(logging.INFO, 'absl')
  shown = progress.Progress(40, unit='step', line='step {done}')
  for done in (10, 20):
    clock[0] += 1
    shown.update(done, f'loss {done}')
  assert caplog.messages == ['step 10  loss 10', 'step 20  loss 20  2 s left']


def test_words():
  assert [words.duration(s) for s in (4.4, 59.9, 89, 4380)] == [
      '4 s', '1 min', '1 min', '1 h 13 min',
  ]  # fmt: skip
  assert words.dimensions((28, 28, 1)) == '28 x 28 x 1'
