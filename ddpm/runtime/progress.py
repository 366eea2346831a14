"""How far a long computation is."""

import time

from absl import logging
import tqdm

LOG_SECONDS = 10


class Progress:
  """How far it is: a bar on a terminal, else a line now and then."""

  def __init__(self, done, total):
    self._done = done
    self._total = total
    # When the first batch was done, which takes compiling, and where it was.
    self._start = None
    # None: silent where there is no terminal.
    self._bar = tqdm.tqdm(
        total=total, initial=done, unit='image', disable=None,
        dynamic_ncols=True,
    )  # fmt: skip

  def add(self, number):
    self._done += number
    self._bar.update(number)
    now = time.monotonic()
    if self._start is None:
      self._start = now, self._done
    elif self._bar.disable:
      started, first = self._start
      rate = (self._done - first) / (now - started)
      logging.log_every_n_seconds(
          logging.INFO, '%d of %d images, %.1f images/s, %s left', LOG_SECONDS,
          self._done, self._total, rate,
          duration((self._total - self._done) / rate),
      )  # fmt: skip

  def close(self):
    self._bar.close()


def duration(seconds):
  """A time in words: '40 s', '12 min', '1 h 13 min'."""
  if round(seconds) < 60:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'
