"""A run's model, as its workdir describes it."""

import functools
import math
import re

import numpy as np

from ddpm import checkpoint
from ddpm import config as config_lib
from ddpm import ema
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
    precision: that the network computes in.

  Args:
    workdir: the run's folder.
    precision: one of `config.PRECISIONS`, or None for the config's.

  Raises:
    UserError: it holds no run, or there is no such precision.
  """

  def __init__(self, workdir, *, precision=None):
    if precision not in (None, *config_lib.PRECISIONS):
      expected = ', '.join(config_lib.PRECISIONS)
      raise UserError(
          f'--precision is {precision!r}, expected one of: {expected}'
      )
    self._workdir = workdir
    self.config = config_lib.load(workdir)
    if self.config is None:
      if checkpoint.any_in(workdir):
        raise UserError(f'{workdir} has checkpoints, but no config.json')
      raise UserError(checkpoint.none_in(workdir))
    self.precision = precision or self.config.precision

  # Not made before a strategy is, which has to come first.
  @functools.cached_property
  def model(self):
    config = self.config.copy_and_resolve_references()
    config.precision = self.precision
    return config_lib.build_model(config)

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
      which: 'raw'; 'ema', the first average that the run tracks; another one,
        as 'ema:0.9999' or 'power:0.05'; or 'posthoc:0.07', a power-function
        average of any width, built from those in all checkpoints up to this
        one.

    Returns:
      step (integer), their full name ('ema:0.9999'), float32 array [P].

    Raises:
      UserError: another `which`, or a checkpoint of another model.
    """
    match = re.fullmatch(r'ema|raw|(ema|power|posthoc):(\d*\.?\d+)', which)
    if not match:
      raise UserError(
          f'--weights is {which!r}, expected ema, ema:DECAY, power:STD,'
          ' posthoc:STD or raw'
      )
    kind, number = match.groups()
    if kind == 'posthoc':
      return self._posthoc(path, float(number))
    names = ema.names(self.config.ema.decays, self.config.ema.power_stds)
    entries = {n if n.startswith('power:') else f'ema:{n}': n for n in names}
    full = f'{kind}:{float(number)}' if kind else next(iter(entries))
    if which == 'raw':
      full = 'raw'
    entries['raw'] = 'raw'
    if full not in entries:
      raise UserError(
          f'--weights is {which!r}, but the run has {", ".join(entries)}'
      )
    step, params = checkpoint.read_weights(path, self.layout, entries[full])
    return step, full, params

  def _posthoc(self, path, std):
    """What `weights` returns, for a power-function average of any width."""
    stds = self.config.ema.power_stds
    if not stds:
      raise UserError(
          f'--weights is posthoc:{std}, but the run tracks no power-function'
          ' average: train with ema.power_stds=(0.05, 0.10)'
      )
    try:
      ema.power_exponent(std)
    except ValueError as e:
      raise UserError(f'--weights is posthoc:{std}: {e}') from e
    last = checkpoint.step_of(path)
    snapshots = []
    for found in checkpoint.find_all(self._workdir):
      step = checkpoint.step_of(found)
      if step > last:
        break
      # The average of 0 steps has no profile.
      snapshots += [(found, step, s) for s in stds if step]
    if len(snapshots) < 2:
      raise UserError(
          f'--weights is posthoc:{std}, which needs 2 snapshots, but'
          f' {self._workdir} has {len(snapshots)} up to step {last}'
      )
    paths, steps, widths = zip(*snapshots)
    coefficients = ema.posthoc_coefficients(steps, widths, last, std)
    params = np.zeros(self.layout.size)
    # One at a time, however many there are.
    for found, name, coefficient in zip(
        paths, ema.names((), widths), coefficients
    ):
      _, snapshot = checkpoint.read_weights(found, self.layout, name)
      params += coefficient * snapshot
    return last, f'posthoc:{std}', params.astype(np.float32)

  def sampler(
      self,
      sampler,
      steps,
      *,
      batch_size,
      guidance=1.0,
      eta=None,
      jit_compile=True,
      strategy=None,
      **kwargs,
  ):
    """Makes a sampler of the model.

    Args:
      sampler: one of `samplers.SAMPLERS`, or None for the config's.
      steps: of the reverse process, or None for the config's; of another
        sampler for what it is good with.
      batch_size: images that are drawn at once, on each replica.
      guidance: scale of classifier-free guidance; 1 for none.
      eta: of ddim and dpmpp_2m, or None for the config's; of another sampler
        for 0.
      jit_compile: whether to compile with XLA, where the config does.
      strategy: on whose devices; None for the default one.
      **kwargs: of `samplers.Sampler`: an image to begin with, a film.

    Returns:
      `samplers.Sampler`.

    Raises:
      UserError: an unknown sampler, steps out of range, or what the model or
        the sampler has no use for.
    """
    config = self.config
    sampler = sampler or config.sample.sampler
    if sampler not in samplers.SAMPLERS:
      expected = ', '.join(samplers.SAMPLERS)
      raise UserError(f'--sampler is {sampler!r}, expected one of: {expected}')
    defaults = config.sample.steps, config.sample.eta
    if sampler != config.sample.sampler:
      num_timesteps = config.diffusion.num_timesteps
      defaults = samplers.default_steps(sampler, num_timesteps), 0.0
    steps = defaults[0] if steps is None else steps
    eta = defaults[1] if eta is None else eta
    if not 1 <= steps <= config.diffusion.num_timesteps:
      raise UserError(
          f'--steps is {steps}, expected 1 to'
          f' {config.diffusion.num_timesteps}, the timesteps of the model'
      )
    if guidance != 1.0 and not config.train.label_dropout:
      raise UserError(
          f'--guidance is {guidance}, which needs a model that was trained with'
          ' and without its classes: model.num_classes, and'
          ' train.label_dropout=0.1, say'
      )
    if not math.isfinite(guidance):
      raise UserError(f'--guidance is {guidance}, expected a number')
    try:
      samplers.check_eta(sampler, eta, '--eta')
    except ValueError as e:
      raise UserError(str(e)) from e
    return samplers.Sampler(
        self.model,
        self.layout,
        self.diffusion,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        eta=eta,
        batch_size=batch_size,
        jit_compile=jit_compile and config_lib.jit_compile(config),
        strategy=strategy,
        **kwargs,
    )
