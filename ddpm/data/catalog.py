"""Loads data sets by name."""

import dataclasses
import importlib.resources
import os

import numpy as np

from ddpm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Images:
  """A data set in memory.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: int32 [N]; all 0 if the data set has no labels.
    num_classes: 0 if the data set has no labels.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int


def load(name, *, data_dir, split, image_size):
  """Loads a data set.

  Args:
    name: 'mnist5k', or 'tfds:NAME' with a name from tensorflow-datasets.
    data_dir: folder of prepared data sets of tensorflow-datasets.
    split: 'train', 'test' or in TFDS notation, such as 'train[:1000]'. mnist5k
      has only 'train'.
    image_size: height and width of the images, in pixels.

  Returns:
    `Images`.

  Raises:
    UserError: the name or split is unknown, the data is missing or cannot be
      read, or mnist5k with an image_size other than 28.
  """
  if name == 'mnist5k':
    return _mnist5k(split, image_size)
  if name.startswith('tfds:'):
    # Imported lazily, because the import is slow.
    from ddpm.data import tfds as tfds_images

    return Images(
        *tfds_images.load(
            name.removeprefix('tfds:'),
            data_dir=os.path.expanduser(data_dir),
            split=split,
            image_size=image_size,
        )
    )
  raise UserError(
      f'data set {name!r} is unknown, expected mnist5k or tfds:NAME, such as'
      ' tfds:mnist'
  )


def _mnist5k(split, image_size):
  """5,000 digits that ship with the package; README.md has their origin."""
  if split != 'train':
    raise UserError(f'mnist5k has no split {split!r}, only train')
  if image_size != 28:
    raise UserError(
        f'mnist5k has 28 x 28 pixels, but data.image_size is {image_size}: set'
        ' it to 28'
    )
  file = importlib.resources.files('ddpm.data') / 'mnist5k.npz'
  with file.open('rb') as f:
    arrays = np.load(f)
    return Images(arrays['images'], arrays['labels'].astype(np.int32), 10)
