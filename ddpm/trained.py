"""A run's model, as its workdir describes it."""

import functools

from ddpm import checkpoint
from ddpm import config as config_lib
from ddpm import samplers
from ddpm import state
from ddpm.errors import UserError


class Trained:
  """What a workdir holds: config, network, diffusion process, weights.

  Attributes:
    config: the run's config.
    model: `unet.UNet`.
    layout: its `state.Layout`.
    diffusion: `diffusion.Diffusion`.

  Args:
    workdir: the run's folder.

  Raises:
    UserError: it holds no run.
  """

  def __init__(self, workdir):
    self.config = config_lib.load(workdir)
    if self.config is None:
      if checkpoint.any_in(workdir):
        raise UserError(f'{workdir} has checkpoints, but no config.json')
      raise UserError(checkpoint.none_in(workdir))

  # Not made before a strategy is, which has to come first.
  @functools.cached_property
  def model(self):
    return config_lib.build_model(self.config)

  @functools.cached_property
  def layout(self):
    return state.Layout(self.model)

  @functools.cached_property
  def diffusion(self):
    return config_lib.build_diffusion(self.config)

  def weights(self, path, which):
    """Reads weights from a checkpoint.

    Args:
      path: of the checkpoint.
      which: 'ema', the first of ema.decays, or 'raw'.

    Returns:
      step (integer), their full name ('ema:0.9999'), float32 array [P].

    Raises:
      UserError: another `which`, or a checkpoint of another model.
    """
    if which not in ('ema', 'raw'):
      raise UserError(f'--weights is {which!r}, expected ema or raw')
    decay = str(self.config.ema.decays[0])
    step, params = checkpoint.read_weights(
        path, self.layout, 'raw' if which == 'raw' else decay
    )
    return step, which if which == 'raw' else f'ema:{decay}', params

  def sampler(self, sampler, steps, *, batch_size, strategy=None):
    """Makes a sampler of the model.

    Args:
      sampler: one of `samplers.SAMPLERS`, or None for the config's.
      steps: of the reverse process, or None for the config's.
      batch_size: images that are drawn at once, on each replica.
      strategy: on whose devices; None for the default one.

    Returns:
      `samplers.Sampler`.

    Raises:
      UserError: an unknown sampler, or steps out of range.
    """
    config = self.config
    sampler = sampler or config.sample.sampler
    steps = config.sample.steps if steps is None else steps
    if sampler not in samplers.SAMPLERS:
      expected = ', '.join(samplers.SAMPLERS)
      raise UserError(f'--sampler is {sampler!r}, expected one of: {expected}')
    if not 1 <= steps <= config.diffusion.num_timesteps:
      raise UserError(
          f'--steps is {steps}, expected 1 to'
          f' {config.diffusion.num_timesteps}, the timesteps of the model'
      )
    return samplers.Sampler(
        self.model,
        self.layout,
        self.diffusion,
        sampler=sampler,
        steps=steps,
        variance=config.diffusion.variance,
        batch_size=batch_size,
        jit_compile=config.jit_compile,
        strategy=strategy,
    )
