"""Graceful exit on signals, and on notices of clouds.

Python runs signal handlers only between its own bytecodes, and a training loop
spends almost no time there. So a thread listens instead: it sets a flag that
the compiled loops read between steps, and enforces the deadline.
"""

import os
import signal
import socket
import threading

from absl import logging
import tensorflow as tf

from ddpm.runtime import environment
from ddpm.runtime import notices
from ddpm.runtime.environment import RESTART

# Fraction of the grace period after which the process is forced to exit.
_PATIENCE = 0.9


class StopSignal:
  """Handles signals and notices for the rest of the process's life.

  Without a flag there is nothing to save: a signal ends the process at once,
  with exit code RESTART. With a flag, a signal or a notice sets it, and the
  program must save and exit with that code. If it has not exited when the
  grace period is nearly over, it is forced to, without saving. A second Ctrl-C
  ends it at once.
  """

  def __init__(self):
    self._flag = None
    self._grace_seconds = None
    self._heard = None
    self._signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    # Python writes the signal number there at once, whatever runs.
    signal.set_wakeup_fd(wakeup.detach())
    environment.on_signals(lambda *_: None)
    threading.Thread(target=self._listen, daemon=True).start()

  def make_flag(self, grace_seconds):
    """Makes the flag. This initializes TensorFlow's devices.

    Args:
      grace_seconds: time from a signal to the end of the process.

    Returns:
      Float32 scalar variable on the host: 1 after a signal, else 0.
    """
    self._grace_seconds = grace_seconds
    # Again: TensorFlow's multi-worker service replaces the SIGTERM handler.
    environment.on_signals(lambda *_: None)
    with tf.device('CPU:0'):
      self._flag = tf.Variable(0.0, trainable=False)
    notices.watch(self._stop)
    return self._flag

  @property
  def heard(self):
    """Name of the first signal or notice, or None."""
    return self._heard

  def _listen(self):
    while True:
      number = signal.Signals(self._signals.recv(1)[0])
      if self._flag is None:
        os._exit(RESTART)
      if self._heard is None:
        self._stop(number.name)
      elif number == signal.SIGINT:
        os._exit(128 + number)

  def _stop(self, reason):
    if self._heard is not None:
      return
    self._heard = reason
    self._flag.assign(1.0)
    logging.warning(
        '%s: saving and exiting within %g s (Ctrl-C again: exit at once)',
        reason,
        self._grace_seconds,
    )
    last_call = threading.Timer(_PATIENCE * self._grace_seconds, self._leave)
    last_call.daemon = True
    last_call.start()

  def _leave(self):
    logging.error(
        'no step ended within train.grace_seconds (%g): exiting without saving;'
        ' rerun to resume from the last checkpoint',
        self._grace_seconds,
    )
    os._exit(RESTART)


class NoSignal:
  """Replaces StopSignal in a notebook, which handles signals itself."""

  heard = None

  def make_flag(self, grace_seconds):
    """A flag that is never set."""
    del grace_seconds
    return 0.0
