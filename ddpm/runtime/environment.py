"""Process-wide settings, made before TensorFlow is imported.

Each is a default: a variable that is already set stays as it is.
"""

import hashlib
import importlib.util
import os
import platform
import signal
import sys
import tempfile

# Exit code of a program that ended through no fault of its own: run the same
# command again to resume. It is EX_TEMPFAIL of sysexits.h.
RESTART = 75

# What can be computed again, but takes its time. It may be deleted.
CACHE = os.path.join(
    os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')), 'ddpm'
)


def prepare():
  """Settles what must be settled before TensorFlow is imported."""
  # Keras on another backend cannot run inside tf.distribute.
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  # A second start finds its compiled programs here.
  os.environ.setdefault(
      'TF_XLA_FLAGS', f'--tf_xla_persistent_cache_directory={_xla_cache()}'
  )
  if 'TF_CPP_MIN_LOG_LEVEL' not in os.environ:
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    _import_tensorflow()


def exit_on_signals():
  """Ends the process at once on SIGTERM or Ctrl-C, with code RESTART.

  For a program that is still loading and has nothing to save.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os._exit(RESTART))


def _import_tensorflow():
  """Imports TensorFlow without the dozen lines it greets with.

  They are written by C++ code before its logging can be configured. If the
  import fails, they are shown after all.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      import tensorflow as tf

      tf.config.list_physical_devices()  # greets, too
    except BaseException:
      held.seek(0)
      os.write(stderr, held.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


def _xla_cache():
  """A folder for what XLA compiles.

  XLA's own key holds neither its version nor the processor, and a home folder
  may be shared by machines that differ in both: the wrong code would crash.
  """
  tensorflow = importlib.util.find_spec('tensorflow').origin
  identity = f'{tensorflow} {os.stat(tensorflow).st_mtime} {platform.machine()}'
  try:
    with open('/proc/cpuinfo') as f:
      identity += next((line for line in f if line.startswith('flags')), '')
  except OSError:
    pass  # Not Linux: homes are not shared there.
  name = hashlib.sha256(identity.encode()).hexdigest()[:12]
  return os.path.join(CACHE, 'xla', name)
