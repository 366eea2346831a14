"""Decoded images, kept on this machine for later starts and other processes.

A data set is decoded once, into a file of its pixels in the cache folder. All
processes map that file into their memory and share its pages, which the kernel
drops when it needs the memory: a set may be larger than that.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import typing

from absl import logging
import numpy as np

from ddpm.runtime import cache
from ddpm.runtime import progress
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing

# Of the files' format, and of what decoding and resizing do.
_VERSION = 1

# Of Linux; Python 3.12 and older do not name it.
_MAP_NORESERVE = 0x4000


class Stored(typing.NamedTuple):
  """A data set on disk.

  Attributes:
    images: uint8 [N, H, W, C], mapped from their file.
    file: its path. It has the pixels, and nothing else.
    labels: int32 [N].
    digest: hash of images and labels.
    broken: number of images that could not be decoded, and were left out.
  """

  images: np.ndarray
  file: str
  labels: np.ndarray
  digest: str
  broken: int


def keep(identity, make, *, name, count, shape):
  """Returns a data set from the cache, which it is put into if it is not there.

  Args:
    identity: strings that determine the images and labels.
    make: function () -> iterator of blocks: images uint8 [n, H, W, C], labels
      int32 [n] and the number of broken images among them.
    name: of the data set, for messages.
    count: images that `make` reads.
    shape: (H, W, C).

  Returns:
    `Stored`.

  Raises:
    UserError: the disk is too small or cannot be written; or as `make`.
  """
  parts = [str(_VERSION), *map(str, identity), str(tuple(shape))]
  key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
  folder = os.path.join(cache.folder(), 'images', key)
  with writing(folder):
    os.makedirs(os.path.dirname(folder), exist_ok=True)
  waiting = f'another process decodes {name}: waiting for it'
  with one_at_a_time(folder + '.lock', waiting):
    if not os.path.exists(folder):
      _write(folder, make, name, count, shape)
  return _read(folder, shape)


@contextlib.contextmanager
def one_at_a_time(path, message):
  """A context that one process of this machine at a time is in.

  Args:
    path: of a file to lock, which is made.
    message: to log if there is a wait.
  """
  with writing(path):
    file = open(path, 'w')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('%s', message)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _write(folder, make, name, count, shape):
  """Writes a data set's files to a folder, which appears when it is whole."""
  _check_disk(os.path.dirname(folder), name, count * int(np.prod(shape)))
  part = folder + '.part'
  shutil.rmtree(part, ignore_errors=True)  # Of a process that was killed.
  digest = hashlib.sha256()
  labels, done, broken = [], 0, 0
  shown = progress.Progress(
      count, unit='image', line='{done} of {total} images decoded',
      name='decoding',
  )  # fmt: skip
  try:
    with writing(part):
      os.makedirs(part)
      file = open(os.path.join(part, 'images'), 'wb')
    with file:
      for images, numbers, missing in make():
        data = np.ascontiguousarray(images).data
        digest.update(data)
        with writing(part):
          file.write(data)
          file.flush()
        labels.append(np.asarray(numbers, np.int32))
        broken += missing
        done += len(images) + missing
        shown.update(done)
    labels = np.concatenate(labels)
    if not len(labels):
      raise UserError(f'{name}: none of its {count} images can be decoded')
    digest.update(labels.data)
    facts = {'name': name, 'digest': digest.hexdigest(), 'broken': broken}
    with writing(part):
      np.save(os.path.join(part, 'labels.npy'), labels)
      with open(os.path.join(part, 'facts.json'), 'w') as f:
        json.dump(facts, f)
      os.rename(part, folder)
  finally:
    shown.close()
    shutil.rmtree(part, ignore_errors=True)


def _check_disk(folder, name, size):
  free = shutil.disk_usage(folder).free
  if size > free:
    raise UserError(
        f'{name} takes {size / 2**30:.1f} GiB when decoded, but {folder} has'
        f' {free / 2**30:.1f} GiB left: set XDG_CACHE_HOME to a folder on a'
        ' larger disk, or use a smaller data.image_size'
    )


def _read(folder, shape):
  labels = np.load(os.path.join(folder, 'labels.npy'))
  with open(os.path.join(folder, 'facts.json')) as f:
    facts = json.load(f)
  file = os.path.join(folder, 'images')
  with open(file, 'rb') as f:
    # Nothing writes to it. But DLPack refuses what is read-only, and without
    # NORESERVE the kernel refuses what is larger than the memory.
    mapped = mmap.mmap(
        f.fileno(), 0, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
    )  # fmt: skip
  images = np.frombuffer(mapped, np.uint8).reshape(len(labels), *shape)
  return Stored(images, file, labels, facts['digest'], facts['broken'])
