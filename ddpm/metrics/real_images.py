"""Real images to compare samples with."""

import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.metrics import sources
from ddpm.runtime import words
from ddpm.runtime.errors import UserError


class RealImages:
  """The splits of a data set, each loaded once, in a random but fixed order.

  Args:
    name: 'mnist5k', 'tfds:NAME' or 'folder:PATH'.
    data_dir: where tensorflow-datasets keeps data; None for its default.
    shape: (H, W, C) that the images must have.
  """

  def __init__(self, name, data_dir, shape):
    self._name = name
    self._data_dir = data_dir or '~/tensorflow_datasets'
    self._shape = tuple(shape)
    self._splits = {}

  def split(self, split):
    """A source of `sources`, of the shape that samples have."""
    if split not in self._splits:
      self._splits[split] = self._load(split)
    return self._splits[split]

  def _load(self, split):
    name, shape = self._name, self._shape
    if name.startswith('folder:'):
      if split != 'train':
        raise UserError(f'--split is {split}, but {name} has no splits')
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
      raise UserError(
          f'--data is {name!r}, expected mnist5k, tfds:NAME or folder:PATH'
      )
    if tuple(source.shape) != shape:
      raise UserError(
          f'the samples are {words.dimensions(shape)}, but the images of {name}'
          f' are {words.dimensions(source.shape)}: compare like with like'
      )
    return source


def _order(n):
  """The same permutation of 0 to n - 1, int64 [n], on every machine."""
  return pipeline.batch_indices(
      0, 0, tf.range(n, dtype=tf.int64), batch_size=n, num_images=n
  ).numpy()
