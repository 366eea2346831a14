"""Adds up the time that a program spends in some of its functions."""

import collections
import functools
import time


class Stopwatch:
  """Adds up the seconds inside functions, those of inner ones not counted."""

  def __init__(self):
    self.seconds = collections.Counter()
    self._inner = [0.0]

  def wrap(self, owner, name, part):
    """Measures a function of a class or module, under a name."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def measured(*args, **kwargs):
      began = time.monotonic()
      self._inner.append(0.0)
      try:
        return function(*args, **kwargs)
      finally:
        took = time.monotonic() - began
        self.seconds[part] += took - self._inner.pop()
        self._inner[-1] += took

    setattr(owner, name, measured)
