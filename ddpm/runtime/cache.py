"""The cache folder: what is slow to recompute, but safe to delete."""

import atexit
import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile

# TensorFlow's messages about an entry of XLA's cache that is not whole.
_DAMAGED = ('Read less bytes than requested', 'Serialized cache key')


@functools.cache
def folder():
  """The cache folder, `$XDG_CACHE_HOME/ddpm` or `~/.cache/ddpm`.

  If that cannot be written, as in some containers, a temporary folder of this
  process.
  """
  base = os.environ.get('XDG_CACHE_HOME', '')
  # Relative paths are to be ignored: XDG base directory specification.
  if not os.path.isabs(base):
    base = os.path.expanduser('~/.cache')
  path = os.path.join(base, 'ddpm')
  try:
    # Without HOME, and for a user without a name, '~' stays.
    if os.path.isabs(path):
      os.makedirs(path, exist_ok=True)
      with tempfile.TemporaryFile(dir=path):
        return path
  except OSError:
    pass
  path = tempfile.mkdtemp(prefix='ddpm-')
  atexit.register(shutil.rmtree, path, ignore_errors=True)
  return path


def xla_flags():
  """TF_XLA_FLAGS by which later starts reuse the programs that XLA compiled."""
  path = _xla_folder().replace('\\', r'\\').replace('"', r'\"')
  return f'--tf_xla_persistent_cache_directory="{path}"'


def serves_xla():
  """Whether XLA keeps and finds its programs in the cache."""
  return os.environ.get('TF_XLA_FLAGS') == xla_flags()


def is_at_fault(error):
  """Whether XLA's cache, and not the program, is the cause of an exception.

  An entry is damaged, or the disk is full. TensorFlow ends the program then,
  and would at every start.
  """
  text = getattr(error, 'message', '')
  return serves_xla() and (
      _xla_folder() in text or any(each in text for each in _DAMAGED)
  )


def start_again_without():
  """Empties XLA's cache and starts this program again, without it."""
  shutil.rmtree(_xla_folder(), ignore_errors=True)
  os.environ['TF_XLA_FLAGS'] = ''
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def _xla_folder():
  """XLA's part of the cache, for this TensorFlow, processor and GPU.

  XLA's own cache key has none of them. Machines that share a home folder may
  differ in all, and the wrong code would crash.
  """
  identity = [platform.machine(), *_tensorflow()]
  # Not Linux: assume that homes are not shared.
  identity += _lines('/proc/cpuinfo', 'flags')[:1]
  identity += _lines('/proc/driver/nvidia/version', 'NVRM')
  for gpu in sorted(glob.glob('/proc/driver/nvidia/gpus/*/information')):
    identity += _lines(gpu, 'Model')
  name = hashlib.sha256('\n'.join(identity).encode()).hexdigest()[:12]
  return os.path.join(folder(), 'xla', name)


def _tensorflow():
  """Where TensorFlow is, when it was installed, and its version."""
  if spec := importlib.util.find_spec('tensorflow'):
    yield f'{spec.origin} {os.stat(spec.origin).st_mtime}'
  for name in ('tensorflow', 'tensorflow-cpu', 'tensorflow-tpu'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      yield f'{name} {importlib.metadata.version(name)}'


def _lines(path, start):
  try:
    with open(path) as f:
      return [line for line in f if line.startswith(start)]
  except OSError:
    return []
