"""Lock of a workdir: one training process at a time."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
import uuid

from absl import logging
import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing

# Seconds between the renewals of a lease, and without one after which its
# holder counts as gone.
_RENEWAL = 15.0
_PATIENCE = 60.0


def held(workdir, *, takes):
  """Locks a workdir against other training processes.

  A local folder is locked by `flock` on WORKDIR/lock, which the kernel releases
  whenever the process exits. Buckets have no locks: there, WORKDIR/lock is a
  lease, an object that names the process and that a thread renews. A lease that
  is not renewed any more is taken over, after a minute. A process that finds
  that its own was taken over exits at once, without saving.

  Args:
    workdir: the run's folder, which must exist.
    takes: whether this process takes the lock; only the chief does.

  Returns:
    Context manager.

  Raises:
    UserError: another process holds it, or the workdir cannot be written.
  """
  if not takes:
    return contextlib.nullcontext()
  path = os.path.join(workdir, 'lock')
  return _leased(path) if files.is_in_bucket(workdir) else _locked(path)


@contextlib.contextmanager
def _locked(path):
  with writing(path):
    file = open(path, 'a+')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise _in_use(path, file.read().strip()) from e
    except OSError as e:
      raise UserError(
          f'{path} cannot be locked ({e.strerror}): use a workdir on a file'
          ' system that has locks'
      ) from e
    with writing(path):
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
      file.flush()
    yield


@contextlib.contextmanager
def _leased(path):
  name = uuid.uuid4().hex
  with writing(path):
    _wait_for_holder(path)
    _write_lease(path, name)
    # Of two that start at once, the one that wrote last goes on.
    time.sleep(_RENEWAL / 5)
    lease = _read_lease(path)
  if lease and lease['name'] != name:
    raise _in_use(path, _holder(lease))
  done = threading.Event()
  renewing = threading.Thread(
      target=_renew, args=(path, name, done), daemon=True
  )
  renewing.start()
  try:
    yield
  finally:
    done.set()
    renewing.join()
    # A start that follows need not wait.
    with contextlib.suppress(OSError, tf.errors.OpError):
      tf.io.gfile.remove(path)


def _wait_for_holder(path):
  """Waits until a lease is released or was not renewed for some time.

  The clocks of two machines may differ, so that its time does not tell.

  Raises:
    BadArgument: it was renewed.
  """
  first = _read_lease(path)
  if not first:
    return
  logging.warning(
      '%s was locked by %s: waiting %g s, in case it is still running',
      os.path.dirname(path), _holder(first), _PATIENCE,
  )  # fmt: skip
  deadline = time.monotonic() + _PATIENCE
  while (left := deadline - time.monotonic()) > 0:
    time.sleep(min(left, _RENEWAL / 5))
    lease = _read_lease(path)
    if not lease:
      return
    if lease != first:
      raise _in_use(path, _holder(lease))


def _renew(path, name, done):
  while not done.wait(_RENEWAL):
    try:
      lease = _read_lease(path)
      if lease and lease['name'] != name:
        logging.error(
            '%s has taken over %s: exiting without saving',
            _holder(lease), os.path.dirname(path),
        )  # fmt: skip
        os._exit(1)
      _write_lease(path, name)
    except (OSError, tf.errors.OpError, UserError) as e:
      logging.warning('%s cannot be renewed: %s', path, reason(e))


def _write_lease(path, name):
  now = datetime.datetime.now(datetime.UTC)
  lease = {
      'host': socket.gethostname(),
      'process': os.getpid(),
      'time': now.isoformat(),
      'name': name,
  }
  files.write_file(path, json.dumps(lease).encode())


def _read_lease(path):
  """A lease's dict, or None if there is none."""
  try:
    with tf.io.gfile.GFile(path) as f:
      return json.loads(f.read())
  except (tf.errors.NotFoundError, ValueError):
    return None


def _holder(lease):
  return f'process {lease["process"]} on {lease["host"]}'


def _in_use(path, holder):
  return BadArgument(
      f'workdir {os.path.dirname(path)} is in use by'
      f' {holder or "a starting process"}: wait for it, stop it, or use another'
      ' workdir'
  )
