"""The programs as functions for notebooks: `ddpm.Run` and `ddpm.train`.

They use all local GPUs, or else the CPU. Bad input raises
`runtime.errors.UserError`, with a one-line message.
"""

import os

import numpy as np

from ddpm.api import scoring
from ddpm.metrics import names
from ddpm.run import build
from ddpm.run import checkpoint as checkpoint_lib
from ddpm.run import config as config_lib
from ddpm.run import reader
from ddpm.runtime import device_map
from ddpm.runtime import files
from ddpm.runtime import preemption
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import BadArgument
from ddpm.sampling import sampler as sampler_lib
from ddpm.training import trainer


def train(config, workdir):
  """Trains a config in a workdir, or resumes the run there.

  Args:
    config: ConfigDict, such as `configs.mnist5k.get_config()`.
    workdir: the run's folder, a string or path.

  Returns:
    `Run`.

  Raises:
    UserError: the config is invalid, or the run cannot start or continue.
  """
  workdir = os.fspath(workdir)
  config_lib.validate(config)
  strategy = build.make_strategy(config)
  files.make_writable_folder(workdir)
  trainer.train(config, workdir, strategy, preemption.NoSignal())
  return Run(workdir)


class Run(reader.Run):
  """A trained run that draws and scores images.

  Attributes:
    config: the run's config.
    model: `unet.UNet`.
    diffusion: the process, `process.Diffusion` or `process.EDM`.

  Args:
    workdir: the run's folder.
    precision: one of `precision.PRECISIONS`, or None for the config's.
  """

  def sample(
      self,
      seeds,
      *,
      labels=None,
      sampler=None,
      steps=None,
      eta=None,
      guidance=1.0,
      weights='ema',
      checkpoint='latest',
  ):
    """Draws one image per seed, the same as ddpm.sample.

    Args:
      seeds: N non-negative integers.
      labels: N classes; None for seed mod the number of classes.
      sampler: a name in `solvers.SOLVERS`; None for the config's.
      steps: sampler steps; None for the sampler's default.
      eta: noise, for samplers that take it; None for the sampler's default.
      guidance: scale of classifier-free guidance; 1 for none.
      weights: 'ema', 'ema:DECAY', 'power:STD', 'posthoc:STD' or 'raw'.
      checkpoint: 'latest', a step, or a path.

    Returns:
      uint8 NumPy array [N, H, W, C].

    Raises:
      UserError: an argument is out of range, or the model does not support it.
    """
    seeds = np.asarray(seeds, np.int64)
    if seeds.ndim != 1 or not seeds.size or seeds.min() < 0:
      raise BadArgument(f'seeds is {seeds}, expected non-negative integers')
    if labels is not None:
      labels = np.asarray(labels, np.int32)
      classes = self.config.model.num_classes
      if not classes:
        raise BadArgument(f'labels is {labels}, but the model has no classes')
      if labels.shape != seeds.shape or not set(labels) <= set(range(classes)):
        raise BadArgument(
            f'labels is {labels}, expected a class below {classes} for each'
            f' of {len(seeds)} seeds'
        )
    strategy = strategy_lib.local_strategy(len(seeds))
    draw = sampler_lib.for_run(
        self,
        sampler,
        steps=steps,
        eta=eta,
        guidance=guidance,
        batch_size=device_map.batch_size(strategy, len(seeds)),
        strategy=strategy,
    )
    path = checkpoint_lib.find(self.workdir, str(checkpoint))
    _, _, params = self.weights(path, weights)
    return np.concatenate(list(draw(params, seeds, labels)))

  def evaluate(
      self,
      *,
      num_samples=names.NUM_SAMPLES,
      metrics=names.METRICS,
      sampler=None,
      steps=None,
      eta=None,
      guidance=1.0,
      checkpoint='latest',
      **kwargs,
  ):
    """Scores samples and records the scores, as ddpm.evaluate does.

    Args:
      num_samples: samples to score; those already on disk are reused.
      metrics: names in `names.MINIMUM`.
      sampler: see `sample`.
      steps: see `sample`.
      eta: see `sample`.
      guidance: see `sample`.
      checkpoint: see `sample`.
      **kwargs: weights, data, data_dir, split, features and inception_weights
        of `scoring.score_run`.

    Returns:
      Dict of metric name -> value, and 'details'.

    Raises:
      UserError: an argument is out of range, or the run does not support it.
    """
    names.check_metrics(metrics)
    metrics = set(metrics)
    names.check_number(num_samples, metrics)
    (result,) = scoring.score_run(
        self,
        [checkpoint_lib.find(self.workdir, str(checkpoint))],
        metrics=metrics,
        num_samples=num_samples,
        strategy=strategy_lib.local_strategy(num_samples),
        sampling={
            'sampler': sampler, 'steps': steps, 'eta': eta,
            'guidance': guidance,
        },
        **kwargs,
    )  # fmt: skip
    return result
