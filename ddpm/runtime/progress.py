"""Progress of a long computation."""

import contextlib
import sys
import time

from absl import logging
import tqdm

from ddpm.runtime import words

LOG_SECONDS = 10

# Of a bar whose notes tell the speed: step 50/1800 |#    | loss 0.1234 ...
_WITH_NOTES = '{unit} {n_fmt}/{total_fmt} |{bar}| {desc}'


class Progress:
  """Shows progress: a bar on a terminal, elsewhere log lines.

  While there is a bar, lines that are logged or printed appear above it.

  Args:
    total: units of work.
    unit: 'step' or 'image', for the bar.
    done: units done before this start.
    line: format of a log line's beginning, of `done` and `total`.
    name: what is computed, for the bar.
    notes: whether updates come with notes, which then take the place of the
      bar's name and speed.
  """

  def __init__(
      self, total, *, unit, done=0, line='{done} of {total}', name=None,
      notes=False,
  ):  # fmt: skip
    self._total = total
    self._unit = unit
    self._line = line
    # Time and units when the first update came: what came before includes
    # compiling.
    self._first = None
    self._logged_at = 0.0
    self._bar = tqdm.tqdm(
        total=total, initial=done, unit=unit, desc=name, dynamic_ncols=True,
        bar_format=_WITH_NOTES if notes else None,
        disable=None,  # Silent if stderr is not a terminal.
    )  # fmt: skip
    self._above = contextlib.ExitStack()
    if not self._bar.disable:
      self._above.enter_context(_output_above(self._bar))

  def update(self, done, note=None):
    """Says that so many units are done.

    Args:
      done: units.
      note: what else to show, 'loss 0.1234'. A log line is written for each
        note; without one, every 10 seconds, with the speed.
    """
    now = time.monotonic()
    if self._first is None:
      self._first = now, done
    began, first = self._first
    rate = (done - first) / (now - began) if done > first else None
    left = []
    if rate:
      left = [f'{words.duration((self._total - done) / rate)} left']
    if not self._bar.disable:
      if note:
        self._bar.set_description_str('  '.join([note, *left]), refresh=False)
      self._bar.update(done - self._bar.n)
      return
    if note is None and now - self._logged_at < LOG_SECONDS:
      return
    if note is None and rate is None:
      return
    note = note or f'{rate:.1f} {self._unit}s/s'
    parts = [self._line.format(done=done, total=self._total), note, *left]
    logging.info('%s', '  '.join(parts))
    self._logged_at = now

  def close(self):
    self._above.close()
    self._bar.close()


@contextlib.contextmanager
def _output_above(bar):
  """Lines for the terminal appear above a bar, which they would tear."""
  handler = logging.get_absl_handler().python_handler
  logged_to = handler.stream
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.redirect_stderr(_Above(bar, sys.stderr)))
    if sys.stdout.isatty():
      stack.enter_context(contextlib.redirect_stdout(_Above(bar, sys.stdout)))
    # It has kept the stream that it began with. Not a file (--log_dir).
    if logged_to.isatty():
      handler.setStream(_Above(bar, logged_to))
      stack.callback(handler.setStream, logged_to)
    yield


class _Above:
  """A stream of the terminal whose lines appear above a bar."""

  def __init__(self, bar, stream):
    self._bar = bar
    self._stream = stream
    self._rest = ''  # Of a line that has not ended yet.

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text):
    lines, end, self._rest = (self._rest + text).rpartition('\n')
    if end:
      with self._bar.get_lock():
        self._bar.clear(nolock=True)
        self._stream.write(lines + end)
        self._stream.flush()
        self._bar.refresh(nolock=True)
    return len(text)
