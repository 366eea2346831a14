"""Locks of folders: one process writes there at a time."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
import typing
import uuid

from absl import logging
import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime import strict_json
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing

# Seconds between the renewals of a lease, and without one after which its
# holder counts as gone.
_RENEWAL = 15.0
_PATIENCE = 60.0


class _Place(typing.NamedTuple):
  """What is locked.

  Attributes:
    kind: of the folder, its argument's name: 'workdir'.
    folder: path of the folder.
    path: of the lock.
  """

  kind: str
  folder: str
  path: str


def held(folder, *, takes=True, kind='workdir', path=None):
  """Locks a folder against other processes that would write there.

  A local folder is locked by `flock` on FOLDER/lock, which the kernel releases
  whenever the process exits. Buckets have no locks: there, FOLDER/lock is a
  lease, an object that names the process and that a thread renews. A lease that
  is not renewed any more is taken over, after a minute. A process that finds
  that its own was taken over exits at once, without saving.

  Args:
    folder: path of the folder.
    takes: whether this process takes the lock; of those that train one run,
      only the chief does.
    kind: of the folder, its argument's name in messages: 'workdir'.
    path: of the lock, in a folder that exists; None for FOLDER/lock.

  Returns:
    Context manager.

  Raises:
    UserError: another process holds it, or the folder cannot be written.
  """
  if not takes:
    return contextlib.nullcontext()
  place = _Place(kind, folder, path or os.path.join(folder, 'lock'))
  return _leased(place) if files.is_in_bucket(folder) else _locked(place)


@contextlib.contextmanager
def turn(folder):
  """Waits until no other process of this machine is in this context.

  For short work, such as adding to a file. Buckets, and file systems without
  locks, let all in.

  Args:
    folder: path of a folder, which must exist.

  Raises:
    UserError: the folder cannot be written.
  """
  if files.is_in_bucket(folder):
    yield
    return
  path = os.path.join(folder, 'lock')
  with writing(path):
    file = open(path, 'a')
  with file:
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _locked(place):
  path = place.path
  with writing(path):
    file = open(path, 'a+')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise _in_use(place, file.read().strip()) from e
    except OSError as e:
      raise UserError(
          f'{path} cannot be locked ({e.strerror}): use another'
          f' {place.kind}, on a file system that has locks'
      ) from e
    with writing(path):
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
      file.flush()
    yield


@contextlib.contextmanager
def _leased(place):
  path, name = place.path, uuid.uuid4().hex
  with writing(path):
    _wait_for_holder(place)
    _write_lease(path, name)
    # Of two that start at once, the one that wrote last goes on.
    time.sleep(_RENEWAL / 5)
    lease = _read_lease(path)
  if lease and lease['name'] != name:
    raise _in_use(place, _holder(lease))
  done = threading.Event()
  renewing = threading.Thread(
      target=_renew, args=(place, name, done), daemon=True
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


def _wait_for_holder(place):
  """Waits until a lease is released or was not renewed for some time.

  The clocks of two machines may differ, so that its time does not tell.

  Raises:
    BadArgument: it was renewed.
  """
  first = _read_lease(place.path)
  if not first:
    return
  logging.warning(
      '%s was locked by %s: waiting %g s, in case it is still running',
      place.folder, _holder(first), _PATIENCE,
  )  # fmt: skip
  deadline = time.monotonic() + _PATIENCE
  while (left := deadline - time.monotonic()) > 0:
    time.sleep(min(left, _RENEWAL / 5))
    lease = _read_lease(place.path)
    if not lease:
      return
    if lease != first:
      raise _in_use(place, _holder(lease))


def _renew(place, name, done):
  path = place.path
  while not done.wait(_RENEWAL):
    try:
      lease = _read_lease(path)
      if lease and lease['name'] != name:
        logging.error(
            '%s has taken over %s: exiting without saving',
            _holder(lease), place.folder,
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
  files.write_file(path, strict_json.dumps(lease).encode())


def _read_lease(path):
  """A lease's dict, or None if there is none."""
  try:
    with tf.io.gfile.GFile(path) as f:
      return json.loads(f.read())
  except (tf.errors.NotFoundError, ValueError):
    return None


def _holder(lease):
  return f'process {lease["process"]} on {lease["host"]}'


def _in_use(place, holder):
  return BadArgument(
      f'{place.kind} {place.folder} is in use by'
      f' {holder or "a starting process"}: wait for it, stop it, or use another'
      f' {place.kind}'
  )
