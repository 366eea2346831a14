"""Real images as a reference for samples."""

import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.metrics import sources
from ddpm.runtime import words
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import UserError


class RealImages:
  """A data set's splits, each loaded once, in a fixed random order.

  Attributes:
    shape: (H, W, C).

  Args:
    name: 'mnist5k', 'tfds:NAME' or 'folder:PATH'.
    data_dir: data directory of tensorflow-datasets; None for its default.
    shape: (H, W, C) of the samples, which the images must match.
  """

  def __init__(self, name, data_dir, shape):
    self._name = name
    self._data_dir = data_dir or '~/tensorflow_datasets'
    self.shape = tuple(shape)
    self._splits = {}

  def split(self, split):
    """Returns a split as a source, see `sources`.

    Raises:
      UserError: the data is unknown, cannot be read or has another shape.
    """
    if split not in self._splits:
      self._splits[split] = self._load(split)
    return self._splits[split]

  def _load(self, split):
    name, shape = self._name, self.shape
    if name.startswith('folder:'):
      if split != 'train':
        raise BadArgument(
            f'split is {split}, but {name} has no splits, expected train'
        )
      source = sources.Folder(name.removeprefix('folder:'), order=_order)
    elif name == 'mnist5k' or name.startswith('tfds:'):
      loaded = catalog.load(
          name,
          data_dir=self._data_dir,
          split=split,
          image_size=28 if name == 'mnist5k' else shape[0],
      )
      source = sources.InMemory(
          loaded.images,
          loaded.labels if loaded.num_classes else None,
          _order(len(loaded.images)),
      )
    else:
      raise BadArgument(
          f'data is {name!r}, expected mnist5k, tfds:NAME or folder:PATH'
      )
    if tuple(source.shape) != shape:
      raise UserError(
          f'the samples are {words.dimensions(shape)}, but the images of {name}'
          f' are {words.dimensions(source.shape)}: both must have the same'
          ' shape'
      )
    return source


def _order(n):
  """A permutation of 0 to n - 1, int64 [n], the same on every machine."""
  return pipeline.batch_indices(
      0, 0, tf.range(n, dtype=tf.int64), batch_size=n, num_images=n
  ).numpy()
