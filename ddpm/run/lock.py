"""One run, one workdir."""

import contextlib
import fcntl
import os
import socket

from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing


@contextlib.contextmanager
def held(workdir, *, takes):
  """Keeps every other process from training in a workdir.

  The lock is the kernel's (`flock`), on WORKDIR/lock: it ends with the
  process, however that ends. Buckets have no locks.

  Args:
    workdir: the run's folder, which exists.
    takes: whether this process takes the lock: the chief, for all workers.

  Raises:
    UserError: another process has it, or the workdir cannot be written to.
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
      holder = file.read().strip() or 'a process that is starting'
      raise UserError(
          f'--workdir {workdir} is in use by {holder}: wait for it, stop it, or'
          ' use another workdir'
      ) from e
    except OSError as e:
      raise UserError(
          f'{path} cannot be locked ({e.strerror}): the file system of'
          ' --workdir has no locks, use another'
      ) from e
    with writing(path):
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
      file.flush()
    yield
