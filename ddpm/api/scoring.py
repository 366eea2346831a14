"""Scores a run's samples, for ddpm.evaluate and `ddpm.Run`."""

import hashlib
import os

from absl import logging

from ddpm.metrics import evaluator
from ddpm.metrics import extractors
from ddpm.metrics import likelihood
from ddpm.metrics import real_images
from ddpm.metrics import report
from ddpm.metrics import sources
from ddpm.run import build
from ddpm.runtime import device_map
from ddpm.runtime import shards
from ddpm.runtime.errors import BadArgument
from ddpm.sampling import sampler as sampler_lib


def score_run(
    run,
    paths,
    *,
    metrics,
    num_samples,
    strategy,
    sampling,
    weights='ema',
    data=None,
    data_dir=None,
    split=None,
    features=None,
    inception_weights=None,
):
  """Scores samples of checkpoints, and records the scores in the workdir.

  Args:
    run: `reader.Run`.
    paths: the checkpoints' paths.
    metrics: set of names in `names.MINIMUM`.
    num_samples: samples per checkpoint; those already on disk are reused.
    strategy: single-process `tf.distribute.Strategy`.
    sampling: dict of sampler, steps, eta and guidance for `sampler.for_run`.
    weights: see `reader.Run.weights`.
    data: real images, a name for `RealImages`; None for the run's.
    data_dir: folder of tensorflow-datasets; None for the run's.
    split: split of the real images; None for the run's, and 'test' for bpd.
    features: extractor name; None for the default for the image shape.
    inception_weights: weights file of the extractor 'inception'.

  Yields:
    One result per checkpoint: dict of metric name -> value, and 'details'.

  Raises:
    UserError: the arguments do not fit the run.
  """
  config = run.config
  batch_size = device_map.batch_size(strategy, shards.ROWS)
  sampler = sampler_lib.for_run(
      run, **sampling, batch_size=batch_size, strategy=strategy
  )
  name = data or config.data.name
  settings = build.data_settings(config)
  if name != config.data.name:
    settings = {'data_dir': settings['data_dir'], 'resize': settings['resize']}
  if data_dir:
    settings['data_dir'] = data_dir
  real = real_images.RealImages(name, run.model.image_shape, **settings)
  # bpd is for unseen images by default.
  bpd_split = split or 'test'
  split = split or config.data.split
  scorer = make_evaluator(
      metrics,
      real,
      split=split,
      training_split=config.data.split,
      features=features,
      inception_weights=inception_weights,
      num_samples=num_samples,
      strategy=strategy,
  )
  bits = None
  if 'bpd' in metrics:
    _check_has_bound(config)
    bits = likelihood.BitsPerDim(
        run,
        real.split(bpd_split),
        num_images=num_samples,
        strategy=strategy,
        batch_size=batch_size,
    )
  logging.info(
      '%d samples per checkpoint, %s, %d steps, %d replicas',
      num_samples, sampler.spec.sampler, sampler.spec.steps,
      strategy.num_replicas_in_sync,
  )  # fmt: skip
  for path in paths:
    step, name_of_weights, params = run.weights(path, weights)
    # Keyed by the weights, because a workdir may be emptied and reused.
    digest = hashlib.sha256(params).hexdigest()
    directory = os.path.join(
        run.workdir, 'evaluation', f'{step:08d}_{digest[:8]}'
    )
    title = f'samples of step {step}'
    samples = sources.GeneratedSamples(
        sampler,
        params,
        directory,
        weights_digest=digest,
        total=num_samples,
        name=title,
    )
    result = scorer.score(samples, title)
    result['details'] |= {
        'checkpoint': path,
        'step': step,
        'weights': name_of_weights,
        'sampler': sampler.spec.sampler,
        'steps': sampler.spec.steps,
        'eta': sampler.spec.eta,
        'guidance': sampler.spec.guidance,
        'data': name,
        'split': split,
    }
    if bits:
      result |= bits(params, directory)
      result['details']['bpd_split'] = bpd_split
    report.record(run.workdir, result)
    yield result


def _check_has_bound(config):
  if config.diffusion.schedule == 'edm':
    raise BadArgument(
        'metrics has bpd, which needs a discrete-time schedule, but the run has'
        ' edm: leave bpd out'
    )


def make_evaluator(
    metrics,
    real,
    *,
    split,
    training_split,
    features,
    inception_weights,
    num_samples,
    strategy,
):
  """The `evaluator.Evaluator` of samples against real images.

  Args:
    metrics: set of names in `names.MINIMUM`.
    real: `real_images.RealImages`.
    split: of the real images to compare with.
    training_split: of those whose copies 'nearest' looks for.
    features: extractor name; None for the default for the image shape.
    inception_weights: weights file of the extractor 'inception'.
    num_samples: to score.
    strategy: single-process `tf.distribute.Strategy`.

  Raises:
    UserError: as `score_run`.
  """
  extractor = None
  if metrics & evaluator.OF_FEATURES:
    default = 'mnist' if real.shape == (28, 28, 1) else 'inception'
    extractor = extractors.load(
        features or default,
        inception_weights=inception_weights,
        image_shape=real.shape,
    )
  return evaluator.Evaluator(
      metrics,
      extractor,
      reference=real.split(split),
      training=real.split(training_split) if 'nearest' in metrics else None,
      num_samples=num_samples,
      strategy=strategy,
  )
