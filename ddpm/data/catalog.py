"""From a data set's name to its images."""

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
    labels: int32 [N]; 0 where the data set has none.
    num_classes: 0 where the data set has no labels.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int


def load(name, *, data_dir, split, image_size):
  """Loads a data set.

  Args:
    name: 'mnist5k', or 'tfds:NAME' with a name of tensorflow-datasets.
    data_dir: where tensorflow-datasets keeps what it prepared.
    split: 'train', 'test' or what TFDS takes, as 'train[:1000]'. mnist5k has
      'train' alone.
    image_size: height and width that the images shall have, in pixels.

  Returns:
    `Images`.

  Raises:
    UserError: an unknown name, or data that is not there.
  """
  if name == 'mnist5k':
    return _mnist5k(split, image_size)
  if name.startswith('tfds:'):
    # Not imported before it is needed: it takes its time.
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
      f'config: data.name is {name!r}, expected mnist5k or tfds:NAME, such as'
      ' tfds:mnist'
  )


def _mnist5k(split, image_size):
  """5,000 digits that ship with the package; README.md there says whose."""
  if split != 'train':
    raise UserError(f'config: mnist5k has no split {split!r}, only train')
  if image_size != 28:
    raise UserError(
        f'config: data.image_size is {image_size}, but mnist5k is 28 x 28'
    )
  file = importlib.resources.files('ddpm.data') / 'mnist5k.npz'
  with file.open('rb') as f:
    arrays = np.load(f)
    return Images(arrays['images'], arrays['labels'].astype(np.int32), 10)
