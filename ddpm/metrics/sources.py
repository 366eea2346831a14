"""Sets of images to score, or to score against, read in blocks.

A source has `shape` (H, W, C), a length N, `identity`, a string that changes
with its images, `labels`, int32 [N], of which slices are taken, or None, and
`read(start, stop)` -> uint8 [stop - start, H, W, C].
"""

import hashlib
import os
import zipfile

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.data import decode
from ddpm.data import folder
from ddpm.runtime import npz
from ddpm.runtime import shards
from ddpm.runtime import words
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# What ddpm.sample writes beside its images.
_NO_SAMPLES = {'grid.png', 'animation.png'}

# Arrays of ddpm.sample that are not needed here.
_UNUSED = {'seeds', 'fractions'}


def keys(images):
  """A number for each image, by which a set has an order of its own.

  Args:
    images: uint8 [N, H, W, C].

  Returns:
    uint64 [N], hashes of the pixels: all but random, the same for copies.
  """
  digests = [hashlib.blake2b(x.data, digest_size=8).digest() for x in images]
  return np.frombuffer(b''.join(digests), np.uint64)


class Ordered:
  """A data set's images, in some order.

  Args:
    source: `data.source`.
    order: int64 [N]: the k-th image is the data set's image order[k].
  """

  def __init__(self, source, order):
    self.shape = tuple(source.shape)
    self.labels = _Labels(source, order) if source.num_classes else None
    self.identity = f'{source.digest} {(len(source), *self.shape)}'
    self._source = source
    self._order = order

  def __len__(self):
    return len(self._order)

  def read(self, start, stop):
    return self._source.gather(self._order[start:stop])


class _Labels:
  """Labels that are read when they are needed."""

  def __init__(self, source, order):
    self._source = source
    self._order = order

  def __getitem__(self, part):
    return self._source.labels_of(self._order[part])


class Chosen:
  """Some images of a source, chosen at random, whatever their order.

  Reads all images once: those with the smallest `keys` are chosen.

  Args:
    source: of the images.
    count: number of images to choose.
  """

  def __init__(self, source, count):
    logging.info('choosing %d of %d images', count, len(source))
    found = [
        keys(source.read(first, min(first + shards.ROWS, len(source))))
        for first in range(0, len(source), shards.ROWS)
    ]
    order = np.argsort(np.concatenate(found), kind='stable')
    # In the source's order, in which it is read.
    self._rows = np.sort(order[:count])
    self._source = source
    self.shape = source.shape
    self.identity = f'{count} of {source.identity}'
    self.labels = None if source.labels is None else source.labels[self._rows]

  def __len__(self):
    return len(self._rows)

  def read(self, start, stop):
    rows = self._rows[start:stop]
    return np.concatenate([self._source.read(i, i + 1) for i in rows])


class Folder:
  """Image files in a folder and its sub-folders, in the order of their names.

  Grids and animations of ddpm.sample are left out.

  Args:
    path: of the folder.

  Raises:
    UserError: no images, or the first cannot be read.
  """

  labels = None

  def __init__(self, path):
    listing = folder.list_images(path, 'none')
    paths = [listing.path(i) for i in range(len(listing.names))]
    self._paths = [
        path for path in paths if os.path.basename(path) not in _NO_SAMPLES
    ]
    left_out = {os.path.basename(path) for path in paths} & _NO_SAMPLES
    names = ', '.join(sorted(left_out))
    if left_out:
      logging.warning(
          '%s: leaving out %s, which ddpm.sample writes beside its images',
          path, names,
      )  # fmt: skip
    if not self._paths:
      raise UserError(f'{path} has no images but {names}')
    self.identity = listing.identity
    self.shape = _decode(self._paths[0]).shape

  def __len__(self):
    return len(self._paths)

  def read(self, start, stop):
    images = []
    for path in self._paths[start:stop]:
      image = _decode(path)
      if image.shape != self.shape:
        raise UserError(
            f'{path} is {words.dimensions(image.shape)}, but {self._paths[0]}'
            f' is {words.dimensions(self.shape)}: images must be of one size'
        )
      images.append(image)
    return np.stack(images)


class Npz:
  """The array `images` of an .npz file, and `labels` if any.

  Guided-diffusion calls them `arr_0` and `arr_1`.

  Args:
    path: of the file, on this machine.

  Raises:
    UserError: not such a file.
  """

  def __init__(self, path):
    if not os.path.exists(path):
      raise UserError(f'{path} does not exist, expected an .npz or a folder')
    self._path = path
    self.labels = None
    try:
      archive = zipfile.ZipFile(path)
      names = [name.removesuffix('.npy') for name in archive.namelist()]
      name = next((n for n in ('images', 'arr_0') if n in names), None)
      if name is None:
        raise UserError(
            f'{path} has no array images (or arr_0), it has:'
            f' {", ".join(names)}'
        )
      self._images = npz.ArrayReader(archive, name)
      others = set(names) - {name} - _UNUSED
      of_labels = 'labels' if 'labels' in others else 'arr_1'
      if of_labels in others:
        others.remove(of_labels)
        with np.load(path) as arrays:
          self.labels = arrays[of_labels]
    except npz.DAMAGE as e:
      raise UserError(f'{path} is not an .npz file: {reason(e)}') from e
    shape, dtype = self._images.shape, self._images.dtype
    if len(shape) != 4 or shape[-1] not in (1, 3):
      raise UserError(
          f'{path}: images is of shape {shape}, expected [N, H, W, C] with C 1'
          ' or 3'
      )
    if not shape[0]:
      raise UserError(f'{path} has no images')
    if dtype != np.uint8:
      raise UserError(_wrong_dtype(path, name, dtype))
    if self.labels is not None:
      found = self.labels
      if found.shape != shape[:1] or not np.issubdtype(found.dtype, np.integer):
        raise UserError(
            f'{path}: {of_labels} is {found.dtype} of shape {found.shape},'
            f' expected integers, one for each of {shape[0]} images'
        )
      self.labels = found.astype(np.int32)
    if others:
      logging.warning('%s: leaving out %s', path, ', '.join(sorted(others)))
    self.shape = shape[1:]
    with open(path, 'rb') as f:
      self.identity = hashlib.file_digest(f, 'sha256').hexdigest()

  def __len__(self):
    return self._images.shape[0]

  def read(self, start, stop):
    try:
      return self._images.read(start, stop)
    except npz.DAMAGE as e:
      raise UserError(f'{self._path} is damaged: {reason(e)}') from e


def _wrong_dtype(path, name, dtype):
  """What to say of images that are not uint8."""
  if np.issubdtype(dtype, np.floating):
    with np.load(path) as arrays:
      count = np.isnan(arrays[name]).any(axis=(1, 2, 3)).sum()
    if count:
      return f'{path}: {count} images have NaN pixels'
  return f'{path}: images are {dtype}, expected uint8 from 0 to 255'


class GeneratedSamples:
  """Samples of a model, seeds 0 to N - 1, drawn when they are read.

  Args:
    sampler: `sampler.Sampler`.
    params: float32 [P], the model's weights.
    directory: of these weights; keeps the samples, one folder per sampler.
    weights_digest: hash of the weights.
    total: N.
    name: for the log.
  """

  def __init__(
      self, sampler, params, directory, *, weights_digest, total, name
  ):
    spec = sampler.spec
    self.identity = f'{weights_digest} {spec.sampler} {sampler.digest}'
    self.shape = sampler.image_shape
    self.labels = None
    if sampler.num_classes:
      self.labels = sampler.labels(np.arange(total))
    self._sampler = sampler
    self._params = params
    self._total = total
    self._shards = shards.Shards(
        os.path.join(
            directory, f'{spec.sampler}_{spec.steps}_{sampler.digest}'
        ),
        self._draw,
        total=total,
        name=name,
    )

  def __len__(self):
    return self._total

  def read(self, start, stop):
    files = self._shards.read(start, stop)
    return np.concatenate([arrays['images'] for arrays in files])

  def _draw(self, start, stop):
    seeds = np.arange(start, stop, dtype=np.int64)
    batches = self._sampler(self._params, seeds)
    return {'images': np.concatenate(list(batches)), 'seeds': seeds}


def samples(path):
  """The images of an .npz file, a folder, or an output of ddpm.sample."""
  if not tf.io.gfile.isdir(path):
    return Npz(path)
  drawn = os.path.join(path, 'samples.npz')
  return Npz(drawn) if os.path.exists(drawn) else Folder(path)


def _decode(path):
  try:
    image = folder.read(path, None)
  except decode.BrokenImage as e:
    raise UserError(f'{path} is not an image: {e}') from e
  if image.shape[-1] not in (1, 3):
    raise UserError(
        f'{path} has {image.shape[-1]} channels, expected 1 (grey) or 3 (RGB)'
    )
  return image
