"""What the programs do, as functions for notebooks: `ddpm.Run`, `ddpm.train`.

They use all GPUs of the machine, or the CPU as TensorFlow has it. Bad input
raises `runtime.errors.UserError`, whose message is one line.
"""

import numpy as np
import tensorflow as tf

from ddpm.api import scoring
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.run import reader
from ddpm.runtime import device_map
from ddpm.runtime import files
from ddpm.runtime import preemption
from ddpm.runtime import strategy as strategy_lib
from ddpm.sampling import sampler as sampler_lib
from ddpm.training import trainer


def train(config, workdir):
  """Trains a config in a workdir, or resumes the run that is there.

  Args:
    config: ConfigDict of a file of configs/, such as `mnist5k.get_config()`.
    workdir: folder of the run.

  Returns:
    `Run`.

  Raises:
    UserError: something that the user can mend.
  """
  config_lib.validate(config)
  if config.deterministic:
    tf.config.experimental.enable_op_determinism()
  strategy = strategy_lib.make_strategy(
      config.distribute.strategy,
      virtual_devices=config.distribute.virtual_devices,
  )
  files.make_writable_folder(workdir)
  trainer.train(config, workdir, strategy, preemption.NoSignal())
  return Run(workdir)


class Run(reader.Run):
  """A trained run, which draws and scores images.

  Attributes:
    config: the run's config.
    model: `unet.UNet`.
    diffusion: the process, `process.Diffusion` or `process.EDM`.

  Args:
    workdir: the run's folder.
    precision: one of `config.PRECISIONS`, or None for the config's.
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
      checkpoint_name='latest',
  ):
    """Draws an image for each seed, the same as ddpm.sample draws.

    Args:
      seeds: N non-negative integers.
      labels: N classes; None for seed mod the number of classes.
      sampler: a name in `solvers.SOLVERS`; None for the config's.
      steps: of the sampler; None for its default.
      eta: noise, of samplers that take it; None for its default.
      guidance: scale of classifier-free guidance; 1 for none.
      weights: 'ema', 'ema:DECAY', 'power:STD', 'posthoc:STD' or 'raw'.
      checkpoint_name: 'latest', a step, or a path.

    Returns:
      uint8 NumPy array [N, H, W, C].
    """
    seeds = np.asarray(seeds, np.int64)
    if labels is not None:
      labels = np.asarray(labels, np.int32)
    strategy = strategy_lib.make_strategy('auto')
    draw = sampler_lib.for_run(
        self,
        sampler,
        steps,
        eta=eta,
        guidance=guidance,
        batch_size=device_map.batch_size(strategy, len(seeds)),
        strategy=strategy,
    )
    path = checkpoint.find(self.workdir, str(checkpoint_name))
    _, _, params = self.weights(path, weights)
    return np.concatenate(list(draw(params, seeds, labels)))

  def evaluate(
      self,
      *,
      num_samples=2000,
      metrics=('fid', 'kid', 'is', 'prdc', 'nearest'),
      sampler=None,
      steps=None,
      eta=None,
      guidance=1.0,
      checkpoint_name='latest',
      **kwargs,
  ):
    """Scores samples, as ddpm.evaluate does, and records the scores.

    Args:
      num_samples: how many to draw, or take from those drawn before.
      metrics: names in `evaluator.MINIMUM`.
      sampler: see `sample`, as steps, eta, guidance and checkpoint_name.
      steps: of the sampler.
      eta: of the sampler.
      guidance: of the sampler.
      checkpoint_name: of what to score.
      **kwargs: weights, data, data_dir, split, features and inception_weights
        of `scoring.score_run`.

    Returns:
      Dict of metric name -> value, and 'details'.
    """
    metrics = set(metrics)
    scoring.check_number(num_samples, metrics)
    (result,) = scoring.score_run(
        self,
        [checkpoint.find(self.workdir, str(checkpoint_name))],
        metrics=metrics,
        num_samples=num_samples,
        strategy=strategy_lib.make_strategy('auto'),
        sampling={
            'sampler': sampler, 'steps': steps, 'eta': eta,
            'guidance': guidance,
        },
        **kwargs,
    )  # fmt: skip
    return result
