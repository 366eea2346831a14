"""Lock of a workdir: one training process at a time."""

import contextlib
import fcntl
import os
import socket

from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing


@contextlib.contextmanager
def held(workdir, *, takes):
  """Locks a workdir against other training processes.

  Uses `flock` on WORKDIR/lock, which the kernel releases whenever the process
  exits. Buckets are not locked.

  Args:
    workdir: the run's folder, which must exist.
    takes: whether this process takes the lock; only the chief does.

  Raises:
    UserError: another process holds it, or the workdir cannot be written.
  """
  if not takes or '://' in workdir:
    yield
    return
  path = os.path.join(workdir, 'lock')
  with writing(path):
    file = open(path, 'a+')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      holder = file.read().strip() or 'a starting process'
      raise BadArgument(
          f'workdir {workdir} is in use by {holder}: wait for it, stop it, or'
          ' use another workdir'
      ) from e
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
