"""What happened to a run: WORKDIR/events.jsonl."""

import contextlib
import datetime
import logging as std_logging
import os
import threading
import time

from absl import logging
import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime import strict_json
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError


@contextlib.contextmanager
def recorded(workdir, *, writes):
  """Records how a process that trains starts and ends, and its warnings.

  Each row has the event, its UTC time and the seconds since the process began.
  A start without an end is of a process that was killed, or still runs.

  Args:
    workdir: the run's folder.
    writes: whether this process records; only the chief does.

  Yields:
    Function (event, **details), which adds a row.
  """
  if not writes:
    yield lambda event, **details: None
    return
  journal = _Journal(os.path.join(workdir, 'events.jsonl'))
  logger = logging.get_absl_logger()
  logger.addHandler(journal)
  try:
    yield journal.record
  except BaseException as e:
    # Ctrl-C in a notebook is not an Exception.
    fails = isinstance(e, Exception) and not isinstance(e, Interrupted)
    journal.record('error' if fails else 'interrupted', message=reason(e))
    raise
  finally:
    logger.removeHandler(journal)
  journal.record('end')


class _Journal(std_logging.Handler):
  """Keeps the rows, and writes the whole file for each: they are few."""

  def __init__(self, path):
    super().__init__(std_logging.WARNING)
    self._path = path
    self._began = time.monotonic()
    self._changing = threading.Lock()
    self._text = ''
    with contextlib.suppress(tf.errors.OpError), tf.io.gfile.GFile(path) as f:
      self._text = f.read()

  def record(self, event, **details):
    self._add(event, details)
    # Training does not depend on it.
    with contextlib.suppress(UserError), self._changing:
      files.write_file(self._path, self._text.encode())

  def emit(self, record):
    details = {'message': record.getMessage()}
    # The thread that stops a run in time must not wait for a bucket.
    if files.is_in_bucket(self._path):
      self._add('warning', details)
    else:
      self.record('warning', **details)

  def _add(self, event, details):
    row = {
        'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
        'seconds': time.monotonic() - self._began,
        'event': event,
    }
    with self._changing:
      self._text += strict_json.dumps(row | details) + '\n'
