"""Draws many images into a folder, on one or several hosts."""

import contextlib
import json
import os
import time

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.run import lock
from ddpm.runtime import files
from ddpm.runtime import npz
from ddpm.runtime import png
from ddpm.runtime import progress
from ddpm.runtime import shards
from ddpm.runtime import strict_json
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import reading
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing
from ddpm.sampling import pictures

# Maximum images in grid.png.
_GRID_IMAGES = 256

# What a job writes into its folder.
_OUTPUTS = ('samples.npz', 'grid.png', 'animation.png', 'png')


class Job:
  """Images of some seeds, drawn into a folder by one or several hosts.

  Until the job is finished, OUTDIR/parts holds the shards drawn so far and each
  host's copy of the job's identity. Host k draws every `hosts`-th shard,
  starting with shard k. Hosts do not communicate; each is one process, which
  holds a lock while it draws.

  Attributes:
    identity: dict of everything the images depend on.
    total: N, the number of images.

  Args:
    outdir: the folder, shared by all hosts.
    draw: function (**columns) -> batches, uint8 [n, H, W, C], or
      [n, frames, H, W, C] for an animation.
    columns: dict of arrays [N, ...], the inputs of each image, such as seeds
      and labels. samples.npz includes them.
    identity: see the attribute.
    given: uint8 [H, W, C], the source picture, shown first in the grid; None
      for none.
    grid_columns: images per row of the grid; None for a square.
    host, hosts: index of this host, number of hosts.
  """

  def __init__(
      self, outdir, draw, columns, *, identity, given=None, grid_columns=None,
      host=0, hosts=1,
  ):  # fmt: skip
    self.identity = identity
    self.total = len(columns['seeds'])
    self._outdir = outdir
    self._draw_batches = draw
    self._columns = columns
    self._given = [] if given is None else [given[None]]
    self._grid_columns = grid_columns
    self._host = host
    self._hosts = hosts
    self._directory = os.path.join(outdir, 'parts')
    self._parts = shards.Shards(
        self._directory, self._draw_part, total=self.total, name='images'
    )
    self._progress, self._done = None, 0

  @contextlib.contextmanager
  def locked(self):
    """Locks this host's part of the folder, which must be this job's.

    Raises:
      UserError: the folder holds something else: a run, or another job, started
        or finished. Or another process draws there.
    """
    # Before anything is written there.
    self._check_ours()
    with writing(self._outdir):
      tf.io.gfile.makedirs(self._directory)
    with lock.held(
        self._outdir, kind='outdir', path=self._path(f'parts/lock_{self._host}')
    ):
      self._check_ours()  # Others may have come and gone.
      yield

  def _check_ours(self):
    """Raises UserError if the folder holds something else."""
    if tf.io.gfile.exists(self._path('config.json')):
      raise BadArgument(
          f'outdir {self._outdir} holds a run, whose files would be'
          f' overwritten: use another one, such as {self._path("out")}'
      )
    begun = files.matching(self._directory, 'job_*.json')
    said = [
        path for path in [self._path('manifest.json'), *begun]
        if tf.io.gfile.exists(path)
    ]  # fmt: skip
    for path in said:
      self._check_same(path)
    found = [n for n in _OUTPUTS if tf.io.gfile.exists(self._path(n))]
    if found and not said:
      raise BadArgument(
          f'outdir {self._outdir} holds {", ".join(found)} of something else:'
          ' use another one'
      )

  def is_finished(self):
    """Whether all files are written."""
    return all(
        tf.io.gfile.exists(self._path(name))
        for name in ('samples.npz', 'manifest.json')
    )

  def begin(self):
    """Writes the job's identity, so that another job is refused."""
    self._write_json(f'parts/job_{self._host}.json', self.identity)

  def draw(self):
    """Draws this host's share of the missing images."""
    share = self._parts.files()[self._host :: self._hosts]
    missing = sorted(set(share) & set(self._parts.missing()))
    total, left = _rows(share), _rows(missing)
    if left < total:
      logging.info('%d of %d images are drawn already', total - left, total)
    self._done = total - left
    self._progress = progress.Progress(
        total, unit='image', done=self._done, line='{done} of {total} images'
    )
    for first, last in missing:
      self._parts.make(first, last)
    self._progress.close()

  def wait(self):
    """Waits until the other hosts have drawn their shares."""
    while missing := self._parts.missing():
      late = {first // shards.ROWS % self._hosts for first, _ in missing}
      logging.log_every_n_seconds(
          logging.INFO, 'waiting for %d images of host %s',
          progress.LOG_SECONDS,
          _rows(missing), ', '.join(map(str, sorted(late))),
      )  # fmt: skip
      time.sleep(1)

  def assemble(self):
    """Writes samples.npz, grid.png and animation.png from the shards."""
    images = self._parts.column('images', 0, self.total)
    columns = {name: [column] for name, column in self._columns.items()}
    npz.write_blocks(
        self._path('samples.npz'), {'images': images} | columns,
        rows=self.total,
    )  # fmt: skip
    first = self._parts.column('images', 0, min(self.total, _GRID_IMAGES))
    png.write_png(self._path('grid.png'), self._grid(first))
    if self.identity.get('animation'):
      (animations,) = self._parts.column('frames', 0, self.total)
      frames = [self._grid([frame]) for frame in animations.swapaxes(0, 1)]
      pictures.write_animation(self._path('animation.png'), frames)

  def _grid(self, blocks):
    images = np.concatenate([*self._given, *blocks])
    return png.grid(images, columns=self._grid_columns)

  def write_pngs(self):
    """Writes each image of samples.npz to png/SEED.png.

    Images with two seeds are numbered instead.
    """
    seeds = self._columns['seeds']
    names = iter(seeds if seeds.ndim == 1 else range(self.total))
    path = self._path('samples.npz')
    for block in npz.read_blocks(path, 'images', rows=shards.ROWS):
      for image in block:
        png.write_png(self._path(f'png/{next(names):08d}.png'), image)

  def finish(self, details):
    """Writes manifest.json, which marks the job as finished."""
    self._write_json('manifest.json', self.identity | details)

  def clear(self):
    """Removes the shards, which samples.npz replaces, and the locks.

    Not while this process holds its lock: some file systems keep open files.
    """
    try:
      if tf.io.gfile.isdir(self._directory):
        tf.io.gfile.rmtree(self._directory)
    except tf.errors.OpError as e:  # Another process is there.
      logging.warning('%s cannot be removed: %s', self._directory, reason(e))

  def _draw_part(self, first, last):
    columns = {
        name: column[first:last] for name, column in self._columns.items()
    }
    batches = []
    for batch in self._draw_batches(**columns):
      batches.append(batch)
      self._done += len(batch)
      self._progress.update(self._done)
    images = np.concatenate(batches)
    if images.ndim == 4:
      return {'images': images}
    return {'images': images[:, -1], 'frames': images}

  def _check_same(self, path):
    """Raises UserError if a file describes another job."""
    try:
      with reading(path), tf.io.gfile.GFile(path) as f:
        theirs = json.loads(f.read())
      differ = [
          f'{name} {theirs.get(name)} -> {value}'
          for name, value in self.identity.items()
          if theirs.get(name) != value
      ]
    except (ValueError, AttributeError) as e:
      raise UserError(f'{path} is damaged: use another outdir') from e
    if differ:
      raise BadArgument(
          f'outdir {self._outdir} holds another job: {", ".join(differ)}; use'
          ' another one'
      )

  def _path(self, name):
    return os.path.join(self._outdir, name)

  def _write_json(self, name, fields):
    text = strict_json.dumps(fields, indent=2) + '\n'
    files.write_file(self._path(name), text.encode())


def _rows(files):
  return sum(last - first for first, last in files)
