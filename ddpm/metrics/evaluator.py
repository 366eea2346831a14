"""From images to scores: features on all devices, then distances.

A set of real images stands beside each set that is scored: the floor is what
real images of the same number get against the rest of the reference. No
generator gets a better score but by chance, or by copying.
"""

import hashlib
import os

import numpy as np
import tensorflow as tf

from ddpm.metrics import distances
from ddpm.runtime import device_map
from ddpm.runtime import npz
from ddpm.runtime import shards
from ddpm.runtime.environment import CACHE
from ddpm.runtime.errors import UserError

# Images that each metric needs at least.
MINIMUM = {'fid': 2, 'kid': 4, 'is': 10, 'prdc': 6, 'nearest': 2, 'bpd': 2}

OF_FEATURES = {'fid', 'kid', 'is', 'prdc'}

# By convention a Fréchet distance is called FID from this many samples on.
_FID_SAMPLES = 50_000

# Rows of a block of the kernel distance, as Bińkowski et al. have it.
_KID_ROWS = 1000

# Features of more images than these are not kept, only their moments.
_KEPT_ROWS = 100_000
_SAVE_MOMENTS_EVERY = 32

# Images are compared pixel by pixel at this size at most.
_PIXELS = 32


def minimum(metrics):
  """Images that a set of metrics needs at least."""
  return max(MINIMUM[name] for name in metrics)


class Features:
  """Features of a source's images; computed once, then kept in the cache.

  Args:
    source: of `sources`.
    extractor: `base.Extractor`.
    run: its `batched` function.
    name: of the source, for the log.
  """

  def __init__(self, source, extractor, run, name):
    self.source = source
    self._extractor = extractor
    self._run = run
    self._name = name
    identity = [
        source.identity,
        extractor.name,
        extractor.sha256,
        extractor.resize,
    ]
    key = hashlib.sha256('\n'.join(identity).encode()).hexdigest()[:16]
    self._directory = os.path.join(CACHE, 'features', key)
    self._parts = shards.Shards(
        self._directory,
        self._make,
        total=len(source),
        name=f'features of {name}',
    )

  def column(self, name, start, stop):
    """Blocks of 'features' or 'probabilities', to be walked through again."""
    return self._parts.column(name, start, stop)

  def moments(self, start, stop):
    """`distances.Moments` of some rows' features."""
    moments = None
    for features in self.column('features', start, stop):
      moments = moments or distances.Moments(features.shape[1])
      moments.add(features)
    return moments

  def all_moments(self):
    """`distances.Moments` of all rows' features; kept as they grow."""
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
    outputs = list(self._run(self._extractor.weights, images))
    arrays = {
        name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]
    }
    bad = ~np.isfinite(arrays['features']).all(axis=1)
    if bad.any():
      raise UserError(
          f'{self._name}: image {start + int(bad.argmax())} has features that'
          ' are not finite: the extractor is at fault'
      )
    return arrays


def batched(extractor, strategy):
  """The function of an `base.Extractor`, on a strategy's devices.

  Returns:
    `device_map.DeviceMap` from images to a dict of features and, where the
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

  Args:
    metrics: set of names in MINIMUM; 'bpd' is not of images, and not its own.
    extractor: `base.Extractor`; None where no metric is OF_FEATURES.
    reference: source of the real images, in random order.
    training: source of the training images, in random order; None where
      'nearest' is not asked for.
    num_samples: how many images to score, the first ones of a set: N.
    strategy: `tf.distribute.Strategy`.

  Raises:
    UserError: metrics, extractor and reference do not fit each other.
  """

  def __init__(
      self, metrics, extractor, *, reference, training, num_samples, strategy
  ):
    self._metrics = metrics
    self._extractor = extractor
    self._training = training
    self._num_samples = num_samples
    self._held_out = min(num_samples, len(reference) // 2)
    least = minimum(metrics)
    if len(reference) < 2 * least:
      raise UserError(
          f'the reference has {len(reference)} images, expected at least'
          f' {2 * least} for these metrics'
      )
    if extractor and 'is' in metrics and not extractor.has_probabilities:
      raise UserError(
          f'--metrics=is needs class probabilities, which {extractor.name} does'
          ' not give: leave it out'
      )
    self._run = self._reference = None
    if extractor:
      self._run = batched(extractor, strategy)
      self._reference = Features(
          reference, extractor, self._run, 'the real images'
      )
    self._moments = None
    self._floor = None

  def score(self, samples, name):
    """Scores N images.

    Args:
      samples: source.
      name: of it, for the log.

    Returns:
      Dict of metric name -> value, and of 'details': the extractor, N, and the
      floor, with the N it was measured at, which is no more than half of the
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
      features = Features(samples, extractor, self._run, name)
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
    """Real images against the rest of them, by the names of `_scores`."""
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
  """Scores of one set against another; each is (features, start, stop)."""

  def column(name, rows):
    features, start, stop = rows
    return features.column(name, start, stop)

  features, start, stop = fake
  values = {}
  if 'fid' in metrics:
    values['fd'] = distances.frechet(
        real_moments, features.moments(start, stop)
    )
  if 'kid' in metrics:
    # Ten blocks at least, for a standard error that means something.
    rows = min(real[2] - real[1], stop - start)
    values['kid'], values['kid_stderr'] = distances.kid(
        column('features', real),
        column('features', fake),
        block_size=max(2, min(_KID_ROWS, rows // 10)),
    )
  if 'is' in metrics:
    values['is'], values['is_std'] = distances.inception_score(
        column('probabilities', fake), stop - start
    )
  if 'prdc' in metrics:
    values |= distances.prdc(column('features', real), column('features', fake))
  if labelled:
    # The share of images whose likeliest class is their label.
    probabilities = column('probabilities', fake)
    classes = np.concatenate([p.argmax(axis=1) for p in probabilities])
    labels = features.source.labels[start:stop]
    values['class_agreement'] = float(np.mean(classes == labels))
  return values


def _nearest(samples, training):
  """How far samples are from the training images: copies are near.

  The distance is the root of the mean squared difference of pixels in [0, 1],
  at no more than 32 x 32 pixels; larger images are averaged to that.

  Args:
    samples, training: (source, start, stop).

  Returns:
    Dict of the mean and of the 1st percentile over the samples.
  """
  samples, training = _Pixels(*samples), _Pixels(*training)
  values = distances.nearest(samples, training) / np.sqrt(samples.dimensions)
  return {
      'nearest': float(values.mean()),
      'nearest_p01': float(np.percentile(values, 1)),
  }


class _Pixels:
  """Blocks of flat pixels in [0, 1] of a source's images."""

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
