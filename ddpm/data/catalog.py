"""Loads data sets by name."""

import importlib.resources
import os

from absl import logging
import numpy as np

from ddpm.data import decode
from ddpm.data import folder
from ddpm.data import source
from ddpm.data import store
from ddpm.runtime import words
from ddpm.runtime.errors import UserError

_SCHEMES = ('folder', 'prepared', 'tfds')


def is_known(name):
  """Whether a data set's name is of a kind that `load` takes."""
  scheme, _, rest = name.partition(':')
  return name == 'mnist5k' or (scheme in _SCHEMES and bool(rest))


def is_here(name, data_dir):
  """Whether a data set is on this machine, or in a folder that it sees."""
  scheme, _, rest = name.partition(':')
  if scheme != 'tfds':
    return True
  from ddpm.data import tfds as tfds_images

  return tfds_images.is_prepared(rest, os.path.expanduser(data_dir))


def fetch(name, data_dir):
  """Downloads and prepares a data set if it is not here; see `load`."""
  if name.startswith('tfds:'):
    from ddpm.data import tfds as tfds_images

    tfds_images.builder_of(name, data_dir)


def load(
    name,
    *,
    image_size,
    channels=None,
    split='train',
    data_dir='~/tensorflow_datasets',
    resize='center_crop',
    labels='folders',
    image_key='image',
    label_key='label',
    on_error='stop',
):
  """Loads a data set, decoding it if this machine has not done so before.

  Args:
    name: 'mnist5k'; 'folder:PATH'; 'tfds:NAME' with a name from
      tensorflow-datasets; or 'prepared:PATH', a folder with a data set that
      `prepare` or tensorflow-datasets has written.
    image_size: height and width of the images, in pixels: a pair, or one number
      for both.
    channels: that a folder's images are converted to; None for 3. Other data
      sets have their own.
    split: 'train', 'test' or in TFDS notation, such as 'train[:1000]'. mnist5k
      and folders have only 'train'.
    data_dir: folder of the data sets of tensorflow-datasets.
    resize: one of `resize.RULES`.
    labels: of a folder, one of `folder.LABELS`.
    image_key, label_key: features of a data set of tensorflow-datasets.
    on_error: 'stop' or 'skip', at a folder's broken images.

  Returns:
    A source, see `source`.

  Raises:
    UserError: the name or split is unknown, the data is missing or cannot be
      read, or mnist5k with an image_size other than 28.
  """
  if not is_known(name):
    raise UserError(
        f'data set {name!r} is unknown, expected mnist5k, folder:PATH,'
        ' prepared:PATH or tfds:NAME, such as tfds:mnist'
    )
  scheme, _, rest = name.partition(':')
  size = tuple(np.broadcast_to(image_size, 2).tolist())
  if scheme == 'mnist5k':
    return _mnist5k(split, size)
  if scheme == 'folder':
    return _folder(rest, split, size, channels or 3, resize, labels, on_error)
  # Imported lazily, because the import is slow.
  from ddpm.data import tfds as tfds_images

  return tfds_images.load(
      tfds_images.builder_of(name, data_dir),
      name=name,
      split=split,
      image_size=size,
      resize=resize,
      image_key=image_key,
      label_key=label_key,
  )


def _mnist5k(split, size):
  """5,000 digits that ship with the package; README.md has their origin."""
  if split != 'train':
    raise UserError(f'mnist5k has no split {split!r}, only train')
  if size != (28, 28):
    raise UserError(
        'mnist5k has 28 x 28 pixels, but data.image_size is'
        f' {words.dimensions(size)}: set it to 28'
    )
  file = importlib.resources.files('ddpm.data') / 'mnist5k.npz'
  with file.open('rb') as f:
    arrays = np.load(f)
    labels = arrays['labels'].astype(np.int32)
    return source.Images(arrays['images'], labels, 10, name='mnist5k')


def _folder(path, split, size, channels, resize, labels, on_error):
  if split != 'train':
    raise UserError(f'folder:{path} has no split {split!r}, only train')
  if channels not in decode.MODES:
    raise UserError(
        f'model.image_channels is {channels}, but image files have 1 (grey), 3'
        ' (RGB) or 4 (RGBA)'
    )
  listing = folder.list_images(os.path.expanduser(path), labels)

  def make():
    for images, good, broken in folder.blocks(
        listing, size=size, channels=channels, rule=resize, on_error=on_error
    ):
      yield images, listing.labels[good], broken

  stored = store.keep(
      ['folder', listing.identity, labels, resize, on_error],
      make,
      name=f'folder:{folder.shown(path)}',
      count=len(listing.names),
      shape=(*size, channels),
  )
  if stored.broken:
    logging.warning(
        'folder:%s: %d of %d images are broken and left out',
        folder.shown(path), stored.broken, len(listing.names),
    )  # fmt: skip
  return source.Images(
      stored.images, stored.labels, len(listing.classes), stored.digest,
      f'folder:{folder.shown(path)}', stored.file,
  )  # fmt: skip
