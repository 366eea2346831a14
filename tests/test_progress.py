"""Progress on a terminal and without one, and quantities in words."""

import logging
import os
import pty
import subprocess
import sys
import termios

import pytest
from support import ROOT

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


# What trains for three steps, and has other things to say.
_SCRIPT = """
import sys, warnings
from absl import app, logging
from ddpm.runtime import progress

def main(_):
  logging.set_verbosity(logging.INFO)
  shown = progress.Progress(300, unit='step', line='step {done}', notes=True)
  for step in (100, 200, 300):
    shown.update(step, f'loss {step}')
    logging.info('logged %d', step)
    warnings.warn(f'warned {step}')
    print(f'printed {step}')
    print(f'to stderr {step}', file=sys.stderr)
  shown.close()
  logging.info('the end')

app.run(main)
"""


def on_a_terminal(script):
  """The lines that a terminal of 80 columns shows after a script."""
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  process = subprocess.Popen(
      [sys.executable, '-c', script], cwd=ROOT, stdin=theirs, stdout=theirs,
      stderr=theirs,
  )  # fmt: skip
  os.close(theirs)
  said = b''
  while True:
    try:
      more = os.read(ours, 1 << 16)
    except OSError:  # Linux's end of a terminal
      break
    if not more:
      break
    said += more
  assert process.wait() == 0, said
  lines = []
  for text in said.decode().replace('\r\n', '\n').split('\n'):
    line = []
    for part in text.split('\r'):
      line[: len(part)] = part
    lines.append(''.join(line).rstrip())
  return lines


def test_other_output_does_not_tear_a_bar():
  lines = on_a_terminal(_SCRIPT)
  for step in (100, 200, 300):
    assert f'printed {step}' in lines and f'to stderr {step}' in lines
    assert sum(line.endswith(f'] logged {step}') for line in lines) == 1
    assert sum(line.endswith(f': warned {step}') for line in lines) == 1
  # The bar is below all of them, once, and what comes after it is on its own.
  (bar,) = [line for line in lines if line.startswith('step ')]
  assert bar.startswith('step 300/300 |') and ' loss 300' in bar
  after = lines[lines.index(bar) + 1 :]
  assert after[0].endswith('] the end') and not any(after[1:])


def test_words():
  assert words.shortened('0-63') == "'0-63'"
  assert words.shortened('1,' * 99) == repr('1,' * 28 + '1...')
  assert [words.duration(s) for s in (4.4, 59.9, 89, 4380)] == [
      '4 s', '1 min', '1 min', '1 h 13 min',
  ]  # fmt: skip
  assert words.dimensions((28, 28, 1)) == '28 x 28 x 1'
  assert [words.size(n) for n in (740, 999_400, 999_600, 12.13e9, 4e15)] == [
      '740 B', '999.4 kB', '1.0 MB', '12.1 GB', '4000.0 TB',
  ]  # fmt: skip
