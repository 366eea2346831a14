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
    name: see `catalog.load`.
    shape: (H, W, C) of the samples. Images of other sizes are resized.
    **settings: how the data is read: arguments of `catalog.load`.
  """

  def __init__(self, name, shape, **settings):
    if not catalog.is_known(name):
      raise BadArgument(
          f'data is {name!r}, expected mnist5k, folder:PATH, prepared:PATH or'
          ' tfds:NAME'
      )
    self._name = name
    self.shape = tuple(shape)
    self._settings = settings
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
    of_shape = {
        'image_size': 28 if name == 'mnist5k' else shape[:2],
        'channels': shape[-1],
    }
    loaded = catalog.load(name, split=split, **(self._settings | of_shape))
    source = sources.Ordered(loaded, _order(len(loaded)))
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
      0,
      0,
      tf.range(n, dtype=tf.int64),
      batch_size=n,
      num_images=n,
      # As it was when features were first kept in the cache.
      shuffle_rounds=4,
  ).numpy()
