"""Scores images: features on all devices, then distances.

Each score comes with its floor: the score of an equally large held-out set of
real images against the rest of the reference. A generator can beat the floor
only by chance or by copying.
"""

import hashlib
import os

import numpy as np
import tensorflow as tf

from ddpm.metrics import distances
from ddpm.metrics import names
from ddpm.metrics import sources
from ddpm.runtime import cache
from ddpm.runtime import device_map
from ddpm.runtime import npz
from ddpm.runtime import precision
from ddpm.runtime import shards
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import UserError

OF_FEATURES = {'fid', 'kid', 'is', 'prdc'}

# By convention a Fréchet distance is called FID from this many samples on.
_FID_SAMPLES = 50_000

# Block size of the kernel distance in Bińkowski et al. 2018.
_KID_ROWS = 1000

# `all_moments` caches the features of this many images, then only moments.
_KEPT_ROWS = 100_000
# In shards.
_SAVE_MOMENTS_EVERY = 32

# Rows in memory at once, when they are read in another order.
_GATHERED_ROWS = 8192

# Largest height and width for pixel-wise comparison.
_PIXELS = 32


class Features:
  """Features of a source's images, computed once and cached on disk.

  Args:
    source: see `sources`.
    extractor: `base.Extractor`.
    run: its `batched` function.
    name: of the source, for the log.
    is_shuffled: whether its order is a random one already; if not, `shuffled`
      has another.
  """

  def __init__(self, source, extractor, run, name, *, is_shuffled):
    self.source = source
    self._is_shuffled = is_shuffled
    self._extractor = extractor
    self._run = run
    self._name = name
    identity = [
        source.identity,
        extractor.name,
        extractor.sha256,
        extractor.resize,
    ]
    if not is_shuffled:
      identity.append('with keys')
    key = hashlib.sha256('\n'.join(identity).encode()).hexdigest()[:16]
    self._directory = os.path.join(cache.folder(), 'features', key)
    self._parts = shards.Shards(
        self._directory,
        self._make,
        total=len(source),
        name=f'features of {name}',
    )

  def column(self, name, start, stop):
    """Re-iterable blocks of 'features' or 'probabilities'."""
    return self._parts.column(name, start, stop)

  def shuffled(self, name, start, stop):
    """`column` in a random order that depends on the set of images alone.

    Samples may come sorted by class, so that blocks in their own order would
    not be alike, and a score would depend on the order.
    """
    column = self.column(name, start, stop)
    if self._is_shuffled:
      return column
    keys = np.concatenate(list(self.column('keys', start, stop)))
    return _Gathered(column, np.argsort(keys, kind='stable'))

  def moments(self, start, stop):
    """`distances.Moments` of the features of rows start to stop."""
    moments = None
    for features in self.column('features', start, stop):
      moments = moments or distances.Moments(features.shape[1])
      moments.add(features)
    return moments

  def all_moments(self):
    """`distances.Moments` of all features; saved periodically to resume."""
    path = os.path.join(self._directory, 'moments.npz')
    moments, total = None, len(self.source)
    if tf.io.gfile.exists(path):
      moments = distances.Moments.from_arrays(npz.read(path))
    done = 0 if moments is None else moments.count
    while done < total:
      stop = min(done + _SAVE_MOMENTS_EVERY * shards.ROWS, total)
      for first in range(done, stop, shards.ROWS):
        last = min(first + shards.ROWS, stop)
        if last <= _KEPT_ROWS:
          (features,) = self.column('features', first, last)
        else:
          features = self._make(first, last)['features']
        moments = moments or distances.Moments(features.shape[1])
        moments.add(features)
      done = stop
      npz.write(path, moments.to_arrays())
    return moments

  def _make(self, start, stop):
    images = self.source.read(start, stop)
    # 10 bits of mantissa are too coarse for scores.
    with precision.exact_products():
      outputs = list(self._run(self._extractor.weights, images))
    arrays = {
        name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]
    }
    for name, rows in arrays.items():
      bad = ~np.isfinite(rows).all(axis=1)
      if bad.any():
        raise UserError(
            f'{self._name}: image {start + int(bad.argmax())} has {name} that'
            ' are not finite: check the extractor and its weights'
        )
    if not self._is_shuffled:
      arrays['keys'] = sources.keys(images)
    return arrays


class _Gathered:
  """Re-iterable blocks of a column's rows, in another order.

  Each block is one pass over the column: memory does not grow with its length.

  Args:
    column: re-iterable blocks.
    order: int64 [N], the column's rows in the order in which they are to come.
  """

  def __init__(self, column, order):
    self._column = column
    self._order = order

  def __iter__(self):
    for first in range(0, len(self._order), _GATHERED_ROWS):
      yield self._gather(self._order[first : first + _GATHERED_ROWS])

  def _gather(self, rows):
    found, at = None, 0
    for block in self._column:
      if found is None:
        found = np.empty([len(rows), *block.shape[1:]], block.dtype)
      here = (at <= rows) & (rows < at + len(block))
      found[here] = block[rows[here] - at]
      at += len(block)
    return found


def batched(extractor, strategy):
  """A `base.Extractor`'s function on all devices of a strategy.

  Returns:
    `device_map.DeviceMap` from images to a dict of features and, if the
    extractor has them, probabilities.
  """

  def function(weights, images):
    features, probabilities = extractor.function(weights, images)
    outputs = {'features': features}
    if probabilities is not None:
      outputs['probabilities'] = probabilities
    return outputs

  return device_map.DeviceMap(
      function,
      strategy=strategy,
      batch_size=device_map.batch_size(strategy, shards.ROWS),
  )


class Evaluator:
  """Scores sets of images against one reference.

  A score is a function of the set: the order of the images does not matter, but
  for the rounding of sums.

  Args:
    metrics: set of names in `names.MINIMUM`; not 'bpd': see `likelihood`.
    extractor: `base.Extractor`; None if no metric is in OF_FEATURES.
    reference: source of the real images, in random order.
    training: source of the training images, in random order; None without
      'nearest'.
    num_samples: N, the number of images in each set.
    strategy: `tf.distribute.Strategy`.

  Raises:
    UserError: the reference has too few images, or the extractor lacks the
      probabilities that a metric needs.
  """

  def __init__(
      self, metrics, extractor, *, reference, training, num_samples, strategy
  ):
    self._metrics = metrics
    self._extractor = extractor
    self._training = training
    self._num_samples = num_samples
    self._held_out = min(num_samples, len(reference) // 2)
    least = names.minimum(metrics)
    if len(reference) < 2 * least:
      raise UserError(
          f'the reference has {len(reference)} images, expected at least'
          f' {2 * least} for these metrics: use a larger data set or fewer'
          ' metrics'
      )
    if extractor and 'is' in metrics and not extractor.has_probabilities:
      raise BadArgument(
          'metrics has is, which needs class probabilities, but'
          f' {extractor.name} has none: leave it out'
      )
    self._run = self._reference = None
    if extractor:
      self._run = batched(extractor, strategy)
      self._reference = Features(
          reference, extractor, self._run, 'the real images',
          is_shuffled=True,
      )  # fmt: skip
    self._moments = None
    self._floor = None

  def score(self, samples, name):
    """Scores N images.

    Args:
      samples: source of N images.
      name: of the source, for the log.

    Returns:
      Dict of metric name -> value, plus 'details': the extractor, N, the floor
      and the number of images it was measured with, at most half of the
      reference.
    """
    if self._floor is None:
      self._floor = self._measure_floor()
    extractor = self._extractor
    details = {'num_samples': self._num_samples}
    values = {}
    if extractor:
      details |= {
          'extractor': extractor.name,
          'extractor_sha256': extractor.sha256,
          'resize': extractor.resize,
      }
      features = Features(
          samples, extractor, self._run, name, is_shuffled=False
      )
      real_rows = min(self._num_samples, len(self._reference.source))
      values = _scores(
          self._metrics,
          self._moments,
          (self._reference, 0, real_rows),
          (features, 0, self._num_samples),
          extractor.labels and samples.labels is not None,
      )
    if 'nearest' in self._metrics:
      values |= _nearest(
          (samples, 0, self._num_samples),
          (self._training, 0, len(self._training)),
      )
    details['floor'] = {
        self._title(k): v for k, v in self._floor.items() if k in values
    }
    details['floor_num_samples'] = self._held_out
    titled = {self._title(k): v for k, v in values.items()}
    return titled | {'details': details}

  def _measure_floor(self):
    """Scores of held-out real images, by the names of `_scores`."""
    floor = {}
    n = self._held_out
    if self._extractor:
      rest = None
      if 'fid' in self._metrics:
        self._moments = self._reference.all_moments()
        rest = self._moments.without(self._reference.moments(0, n))
      floor = _scores(
          self._metrics,
          rest,
          (self._reference, n, 2 * n),
          (self._reference, 0, n),
          self._extractor.labels and self._reference.source.labels is not None,
      )
    if 'nearest' in self._metrics:
      n = min(self._num_samples, len(self._training) // 2)
      floor |= _nearest(
          (self._training, 0, n), (self._training, n, len(self._training))
      )
    return floor

  def _title(self, name):
    if name.startswith('nearest'):
      return f'{name}@{self._num_samples}'
    inception = self._extractor.name == 'inception'
    if name == 'fd' and inception and self._num_samples >= _FID_SAMPLES:
      return 'fid'
    return f'{name}_{self._extractor.name}@{self._num_samples}'


def _scores(metrics, real_moments, real, fake, labelled):
  """Scores of fake against real; each is (`Features`, start, stop)."""

  def column(name, rows):
    features, start, stop = rows
    return features.column(name, start, stop)

  def shuffled(name, rows):
    features, start, stop = rows
    return features.shuffled(name, start, stop)

  features, start, stop = fake
  values = {}
  if 'fid' in metrics:
    values['fd'] = distances.frechet(
        real_moments, features.moments(start, stop)
    )
  if 'kid' in metrics:
    # At least ten blocks, for a meaningful standard error.
    rows = min(real[2] - real[1], stop - start)
    values['kid'], values['kid_stderr'] = distances.kid(
        shuffled('features', real),
        shuffled('features', fake),
        block_size=max(2, min(_KID_ROWS, rows // 10)),
    )
  if 'is' in metrics:
    try:
      values['is'], values['is_std'] = distances.inception_score(
          shuffled('probabilities', fake), stop - start
      )
    except ValueError as e:
      raise UserError(f"the extractor's {e}: leave out the metric is") from e
  if 'prdc' in metrics:
    values |= distances.prdc(column('features', real), column('features', fake))
  if labelled:
    # The share of images whose most likely class is their label.
    probabilities = column('probabilities', fake)
    classes = np.concatenate([p.argmax(axis=1) for p in probabilities])
    labels = features.source.labels[start:stop]
    values['class_agreement'] = float(np.mean(classes == labels))
  return values


def _nearest(samples, training):
  """Distances from samples to their nearest training images.

  The distance is the root mean square difference of pixels in [0, 1]. Larger
  images are first averaged down to 32 x 32 pixels.

  Args:
    samples, training: (source, start, stop).

  Returns:
    Dict of the mean and the 1st percentile over the samples.
  """
  samples, training = _Pixels(*samples), _Pixels(*training)
  values = distances.nearest(samples, training) / np.sqrt(samples.dimensions)
  return {
      'nearest': float(values.mean()),
      'nearest_p01': float(np.percentile(values, 1)),
  }


class _Pixels:
  """Re-iterable blocks of a source's images, flattened, in [0, 1]."""

  def __init__(self, source, start, stop):
    self._source = source
    self._range = range(start, stop, 8 * shards.ROWS)
    height, width, channels = source.shape
    self._size = min(height, _PIXELS), min(width, _PIXELS)
    self.dimensions = self._size[0] * self._size[1] * channels

  def __iter__(self):
    for first in self._range:
      last = min(first + self._range.step, self._range.stop)
      images = self._source.read(first, last)
      if images.shape[1:3] != self._size:
        images = tf.image.resize(images, self._size, method='area').numpy()
      yield images.reshape(last - first, -1) / np.float32(255)
