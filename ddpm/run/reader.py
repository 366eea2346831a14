"""A run read back from its workdir: config, model, weights."""

import functools
import os
import re

import numpy as np

from ddpm.nn import flat
from ddpm.optim import ema
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.runtime import precision as precision_lib
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import UserError


class Run:
  """A run's config, network, diffusion process and weights.

  Attributes:
    workdir: the run's folder.
    config: the run's config.
    model: `unet.UNet`.
    layout: its `flat.Layout`.
    diffusion: `process.Process`.
    precision: the network's.

  Args:
    workdir: the run's folder.
    precision: one of `precision.PRECISIONS`, or None for the config's.

  Raises:
    UserError: it holds no run, or an unknown precision.
  """

  def __init__(self, workdir, *, precision=None):
    if precision not in (None, *precision_lib.PRECISIONS):
      expected = ', '.join(precision_lib.PRECISIONS)
      raise BadArgument(
          f'precision is {precision!r}, expected one of: {expected}'
      )
    self.workdir = os.fspath(workdir)
    self.config = config_lib.load(self.workdir)
    if self.config is None:
      if checkpoint.any_in(workdir):
        raise UserError(f'{workdir} has checkpoints, but no config.json')
      raise UserError(checkpoint.none_in(workdir))
    self.precision = precision or self.config.precision

  # Made on first use: the strategy has to be made before.
  @functools.cached_property
  def model(self):
    config = self.config.copy_and_resolve_references()
    config.precision = self.precision
    return build.make_model(config)

  @functools.cached_property
  def layout(self):
    return flat.Layout(self.model)

  @functools.cached_property
  def diffusion(self):
    return build.make_process(self.config)

  def weights(self, path, which):
    """Reads weights from a checkpoint.

    Args:
      path: of the checkpoint.
      which: 'raw'; 'ema', the first EMA that the run tracks; another one, as
        'ema:0.9999' or 'power:0.05'; or 'posthoc:0.07', a power-function EMA
        of any width, reconstructed from all checkpoints up to this one.

    Returns:
      step (integer), their full name ('ema:0.9999'), float32 array [P].

    Raises:
      UserError: an unknown `which`, or a checkpoint of another model.
    """
    match = re.fullmatch(r'ema|raw|(ema|power|posthoc):(\d*\.?\d+)', which)
    if not match:
      raise BadArgument(
          f'weights is {which!r}, expected ema, ema:DECAY, power:STD,'
          ' posthoc:STD or raw'
      )
    kind, number = match.groups()
    if kind == 'posthoc':
      return self._posthoc(path, float(number))
    names = build.make_emas(self.config).names
    entries = {n if n.startswith('power:') else f'ema:{n}': n for n in names}
    full = f'{kind}:{float(number)}' if kind else next(iter(entries))
    if which == 'raw':
      full = 'raw'
    entries['raw'] = 'raw'
    if full not in entries:
      raise BadArgument(
          f'weights is {which!r}, but the run has {", ".join(entries)}'
      )
    step, params = checkpoint.read_weights(path, self.layout, entries[full])
    return step, full, params

  def _posthoc(self, path, std):
    """`weights` of a power-function EMA of any width."""
    stds = self.config.ema.power_stds
    if not stds:
      raise BadArgument(
          f'weights is posthoc:{std}, but the run tracks no power-function EMA:'
          ' train with ema.power_stds=(0.05, 0.10)'
      )
    try:
      ema.power_exponent(std)
    except ValueError as e:
      raise BadArgument(f'weights is posthoc:{std}: {e}') from e
    last = checkpoint.step_of(path)
    snapshots = []
    for found in checkpoint.find_all(checkpoint.workdir_of(path)):
      step = checkpoint.step_of(found)
      if step > last:
        break
      # An EMA of 0 steps has no profile.
      snapshots += [(found, step, s) for s in stds if step]
    if len(snapshots) < 2:
      raise BadArgument(
          f'weights is posthoc:{std}, which needs 2 snapshots, but'
          f' {checkpoint.workdir_of(path)} has {len(snapshots)} up to step'
          f' {last}'
      )
    paths, steps, widths = zip(*snapshots)
    coefficients = ema.posthoc_coefficients(steps, widths, last, std)
    params = np.zeros(self.layout.size)
    # One in memory at a time.
    for found, width, coefficient in zip(paths, widths, coefficients):
      name = ema.power_name(width)
      _, snapshot = checkpoint.read_weights(found, self.layout, name)
      params += coefficient * snapshot
    return last, f'posthoc:{std}', params.astype(np.float32)
