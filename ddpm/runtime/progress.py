"""Progress of a long computation."""

import time

from absl import logging
import tqdm

from ddpm.runtime import words

LOG_SECONDS = 10


class Progress:
  """Shows progress: a bar on a terminal, elsewhere log lines.

  Args:
    total: units of work.
    unit: 'step' or 'image', for the bar.
    done: units done before this start.
    line: format of a log line's beginning, of `done` and `total`.
    name: what is computed, for the bar.
  """

  def __init__(
      self, total, *, unit, done=0, line='{done} of {total}', name=None
  ):
    self._total = total
    self._unit = unit
    self._line = line
    # Time and units when the first update came: what came before includes
    # compiling.
    self._first = None
    self._logged_at = 0.0
    self._bar = tqdm.tqdm(
        total=total, initial=done, unit=unit, desc=name, dynamic_ncols=True,
        disable=None,  # Silent if stderr is not a terminal.
    )  # fmt: skip

  @property
  def is_bar(self):
    """Whether it is a bar, which other output would tear."""
    return not self._bar.disable

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
    if self.is_bar:
      self._bar.update(done - self._bar.n)
      if note:
        self._bar.set_postfix_str(note, refresh=False)
      return
    if note is None and now - self._logged_at < LOG_SECONDS:
      return
    began, first = self._first
    rate = (done - first) / (now - began) if done > first else None
    parts = [self._line.format(done=done, total=self._total)]
    if note:
      parts.append(note)
    elif rate is None:
      return
    else:
      parts.append(f'{rate:.1f} {self._unit}s/s')
    if rate:
      parts.append(f'{words.duration((self._total - done) / rate)} left')
    logging.info('%s', '  '.join(parts))
    self._logged_at = now

  def close(self):
    self._bar.close()
