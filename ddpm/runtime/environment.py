"""Process-wide settings, made before TensorFlow is imported.

Environment variables that are already set are kept, except KERAS_BACKEND.
"""

import hashlib
import importlib.util
import os
import platform
import signal
import sys
import tempfile

# Exit code of an interrupted program: rerun to resume. It is EX_TEMPFAIL of
# sysexits.h.
RESTART = 75

# `platform.machine()` of processors that oneDNN is made for.
X86 = ('x86_64', 'AMD64')

# Slow to recompute, but safe to delete.
CACHE = os.path.join(
    os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')), 'ddpm'
)


def set_variables():
  """Makes the settings that TensorFlow reads when it is imported."""
  # Keras on another backend cannot run inside tf.distribute.
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  # oneDNN's kernels. By itself TensorFlow uses them only on processors with
  # AVX-512 VNNI or the like; the others gain as much (defaults.py among the
  # benchmarks). They do not concern GPUs and TPUs.
  if platform.machine() in X86:
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
  # Later starts reuse the compiled programs.
  os.environ.setdefault(
      'TF_XLA_FLAGS', f'--tf_xla_persistent_cache_directory={_xla_cache()}'
  )


def exit_on_signals():
  """Ends the process at once on SIGTERM or Ctrl-C, with code RESTART.

  For a program that is still loading, with nothing to save.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os._exit(RESTART))


def import_tensorflow():
  """Imports TensorFlow, with the settings and without its startup messages.

  C++ code writes a dozen lines before its logging can be configured. They are
  shown if the import fails, or if TF_CPP_MIN_LOG_LEVEL is set.
  """
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


def _xla_cache():
  """XLA's cache folder, specific to TensorFlow version and processor.

  XLA's own cache key has neither. Machines that share a home folder may differ
  in both, and the wrong code would crash.
  """
  tensorflow = importlib.util.find_spec('tensorflow').origin
  identity = f'{tensorflow} {os.stat(tensorflow).st_mtime} {platform.machine()}'
  try:
    with open('/proc/cpuinfo') as f:
      identity += next((line for line in f if line.startswith('flags')), '')
  except OSError:
    pass  # Not Linux: assume that homes are not shared.
  name = hashlib.sha256(identity.encode()).hexdigest()[:12]
  return os.path.join(CACHE, 'xla', name)
