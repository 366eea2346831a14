"""Process-wide settings, made before TensorFlow is imported.

Environment variables that are already set are kept, except those of Keras.
"""

import importlib.util
import os
import platform
import signal
import sys
import tempfile

from ddpm.runtime import cache
from ddpm.runtime.errors import UserError

# Exit code of an interrupted program: rerun to resume. It is EX_TEMPFAIL of
# sysexits.h.
RESTART = 75

# `platform.machine()` of processors that oneDNN is made for.
X86 = ('x86_64', 'AMD64')

# Of schedulers and clouds; Ctrl-C; a terminal or ssh that ends; Slurm's usual
# warning (--signal=USR1).
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# What TensorFlow's C++ code says while it is imported.
_messages = []


def open_streams():
  """Opens what is closed of stdin, stdout and stderr, to nothing.

  Else the next files that are opened would take their places.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      # The lowest free number, which is this one.
      os.open(os.devnull, os.O_RDWR)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, 'r+' if number else 'r', closefd=False))


def set_variables():
  """Makes the settings that TensorFlow reads when it is imported."""
  # Keras on another backend cannot run inside tf.distribute.
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  # No ~/.keras/keras.json, whose data format and precision would change ours.
  # Keras goes on where it cannot make the folder.
  os.environ['KERAS_HOME'] = os.path.join(os.devnull, 'keras')
  # Set, but empty, it is none; TensorFlow refuses it.
  if not os.environ.get('TF_CONFIG', 'some').strip():
    del os.environ['TF_CONFIG']
  # oneDNN's kernels. By itself TensorFlow uses them only on processors with
  # AVX-512 VNNI or the like; the others gain as much (defaults.py among the
  # benchmarks). They do not concern GPUs and TPUs.
  if platform.machine() in X86:
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
  os.environ.setdefault('TF_XLA_FLAGS', cache.xla_flags())


def exit_on_signals():
  """Ends the process at once on a signal to stop, with code RESTART.

  For a program that is still loading, with nothing to save.
  """
  on_signals(lambda *_: os._exit(RESTART))


def on_signals(handler):
  """Installs a handler for all signals to stop."""
  for number in _SIGNALS:
    # nohup asks to ignore SIGHUP.
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, handler)


def import_tensorflow():
  """Imports TensorFlow, with the settings and without its startup messages.

  C++ code writes a dozen lines before its logging can be configured. They are
  shown if the import fails, or if TF_CPP_MIN_LOG_LEVEL is set.

  Raises:
    UserError: TensorFlow is not installed.
  """
  if importlib.util.find_spec('tensorflow') is None:
    raise UserError(
        f'{sys.executable} has no TensorFlow: install ddpm with'
        " 'pip install -e .' in its checkout"
    )
  set_variables()
  if 'TF_CPP_MIN_LOG_LEVEL' in os.environ:
    return
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      import tensorflow as tf

      tf.config.list_physical_devices()  # logs as well
    except BaseException:
      held.seek(0)
      os.write(stderr, held.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
    held.seek(0)
    _messages.append(held.read().decode(errors='replace'))


def startup_messages():
  """What TensorFlow said while it was imported, if it was held back."""
  return ''.join(_messages)
