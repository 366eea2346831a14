"""Ending on request: SIGTERM from a scheduler, Ctrl-C from a person.

Python runs a signal's handler only between two of its own instructions, and a
training loop is hardly ever there. So a thread listens instead: it raises a
flag that the compiled loops read between two steps, and looks at the clock.
"""

import os
import signal
import socket
import threading

from absl import logging
import tensorflow as tf

from ddpm.runtime.environment import RESTART

# Share of the grace that a run may take for itself.
_PATIENCE = 0.9


class StopSignal:
  """Hears SIGTERM and SIGINT for the rest of the process's life.

  Where there is no flag there is nothing to save, and a signal ends the process
  at once, with exit code RESTART. Where there is one it is raised; the program
  is to save and to leave with that code. If it has not left when the grace is
  nearly over, it is made to, and goes on from its last checkpoint. A second
  Ctrl-C ends it at once.
  """

  def __init__(self):
    self._flag = None
    self._grace_seconds = None
    self._heard = None
    self._signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    # Python writes the signal's number there at once, in whatever thread.
    signal.set_wakeup_fd(wakeup.detach())
    _let_python_hear()
    threading.Thread(target=self._listen, daemon=True).start()

  def make_flag(self, grace_seconds):
    """Makes the flag, which settles what TensorFlow's devices are.

    Args:
      grace_seconds: time from a signal to the end of the process.

    Returns:
      A float32 scalar variable on the host: 1 once a signal was heard.
    """
    self._grace_seconds = grace_seconds
    # Once more: TensorFlow's service for several workers takes SIGTERM away.
    _let_python_hear()
    with tf.device('CPU:0'):
      self._flag = tf.Variable(0.0, trainable=False)
    return self._flag

  @property
  def heard(self):
    """Name of the signal that was heard first, or None."""
    return self._heard

  def _listen(self):
    while True:
      number = signal.Signals(self._signals.recv(1)[0])
      if self._flag is None:
        os._exit(RESTART)
      if self._heard is None:
        self._heard = number.name
        self._flag.assign(1.0)
        logging.warning(
            '%s: saving, then leaving, within %g s (Ctrl-C again: at once)',
            number.name,
            self._grace_seconds,
        )
        last_call = threading.Timer(
            _PATIENCE * self._grace_seconds, self._leave
        )
        last_call.daemon = True
        last_call.start()
      elif number == signal.SIGINT:
        os._exit(128 + number)

  def _leave(self):
    logging.error(
        'no step ended within train.grace_seconds (%g): leaving without'
        ' saving; the same command goes on from the last checkpoint',
        self._grace_seconds,
    )
    os._exit(RESTART)


class NoSignal:
  """In a StopSignal's place where signals are somebody else's: a notebook."""

  heard = None

  def make_flag(self, grace_seconds):
    """A flag that is never raised."""
    del grace_seconds
    return 0.0


def _let_python_hear():
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
