"""Which steps are profiled; test_main.py runs it."""

import pytest

from ddpm.runtime import profile


def test_steps_of_a_flag():
  assert profile.parse('100,110') == (100, 110)
  assert profile.parse('7,7') == (7, 7)
  for text in ('', '100', '0,5', '110,100', '-1,5', '1,2,3', '1.5,2', 'a,b'):
    with pytest.raises(ValueError, match='expected the first and the last'):
      profile.parse(text)


@pytest.fixture
def calls(monkeypatch):
  """What TensorFlow's profiler is told."""
  told = []
  profiler = profile.tf.profiler.experimental
  monkeypatch.setattr(profiler, 'start', told.append)
  monkeypatch.setattr(profiler, 'stop', lambda: told.append('stop'))
  return told


def run(profiler, steps, stopped_at=None):
  for step in steps:
    profiler.before(step - 1)
    profiler.after(step, stopped=step == stopped_at)


def test_all_workers_return_where_one_is_profiled(calls):
  for writes in (True, False):
    profiler = profile.Profiler((3, 5), 'board', done=0, writes=writes)
    assert profiler.marks == (2, 5)
    run(profiler, range(1, 9))
  assert calls == ['board', 'stop']


def test_a_profile_ends_with_a_run_that_is_stopped(calls):
  profiler = profile.Profiler((3, 5), 'board', done=2, writes=True)
  run(profiler, (3, 4), stopped_at=4)
  assert calls == ['board', 'stop']


def test_steps_that_are_done_are_not_profiled(calls):
  profiler = profile.Profiler((3, 5), 'board', done=3, writes=True)
  assert profiler.marks == ()
  run(profiler, range(4, 9))
  assert not calls
