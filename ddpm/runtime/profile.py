"""A profile of some steps of training, for TensorBoard."""

import re

from absl import logging
from etils import epy

# Programs report bad flags without loading TensorFlow.
with epy.lazy_imports():
  import tensorflow as tf


def parse(text):
  """First and last step of '100,110'.

  Raises:
    ValueError: it is no such range.
  """
  match = re.fullmatch(r'(\d+),(\d+)', text)
  steps = tuple(map(int, match.groups())) if match else (0, 0)
  if not 1 <= steps[0] <= steps[1]:
    raise ValueError(
        f'profile is {text!r}, expected the first and the last step, such as'
        ' 100,110'
    )
  return steps


class Profiler:
  """Profiles steps, if any are asked for.

  Attributes:
    marks: steps done when it starts and when it ends. There the loops of all
      workers have to return, as they stop together.

  Args:
    steps: the first and the last one, counted from 1; None for no profile.
    directory: of TensorBoard.
    done: steps done before this start.
    writes: whether this worker is profiled.
  """

  def __init__(self, steps, directory, *, done, writes):
    self._directory = directory
    self._writes = writes
    self._running = False
    self.marks = ()
    if steps is None:
      return
    first, last = steps
    if done < first:
      self.marks = first - 1, last
    else:
      logging.warning('no profile: step %d is done already', first)

  def before(self, step):
    """Starts if the next step is the first to profile, after `step` steps."""
    if self._writes and step in self.marks[:1]:
      tf.profiler.experimental.start(self._directory)
      self._running = True

  def after(self, step, *, stopped):
    """Writes the profile if its last step, or that of the run, is done."""
    if self._running and (stopped or step in self.marks[1:]):
      tf.profiler.experimental.stop()
      self._running = False
      logging.info('step %d  profile written to %s', step, self._directory)
