"""The config of a run: checked before any work, kept in the workdir.

`build` makes the objects of a run from it.
"""

import json
import os

from ml_collections import config_dict
import tensorflow as tf

from ddpm.diffusion import noise_levels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion import solvers
from ddpm.nn import unet
from ddpm.optim import adam
from ddpm.optim import ema
from ddpm.run import defaults
from ddpm.runtime import files
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import UserError

PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')

# What defines the trajectory of a run, and may not change in a workdir.
_TRAJECTORY = (
    'seed', 'precision', 'data', 'model', 'diffusion', 'optimizer', 'ema',
    'train.batch_size', 'train.label_dropout',
)  # fmt: skip

# Where the data lies does not change what it is.
_NOT_TRAJECTORY = ('data.data_dir',)

# Of config.json. Version 1 had no number.
_VERSION = 2
# What knobs of version 1 are called since.
_RENAMED = {
    'model.downsample_padding': 'model.compat.downsample_padding',
    'model.embedding_order': 'model.compat.embedding_order',
    'model.embedding_shift': 'model.compat.embedding_shift',
    'model.remat': 'train.remat',
    'diffusion.sigma_min': 'sample.sigma_min',
    'diffusion.sigma_max': 'sample.sigma_max',
    'diffusion.rho': 'sample.rho',
}


def check_found(config):
  """Raises UserError if --config named no file."""
  try:
    _ = config.seed
  except OSError as e:
    # What ml_collections puts in the config's place raises on any access.
    missing = str(e).rpartition('] ')[2]
    raise UserError(f'--config: {missing}') from e


def validate(config):
  """Raises UserError for the first thing in a config that cannot work."""
  try:
    _validate(config)
  except (ValueError, TypeError) as e:
    raise UserError(f'config: {e}') from e


def _validate(config):
  def one_of(name, choices):
    value = _field(config, name)
    if value not in choices:
      expected = ', '.join(map(str, choices))
      raise ValueError(f'{name} is {value!r}, expected one of: {expected}')

  def at_least(name, least):
    value = _field(config, name)
    if value < least:
      raise ValueError(f'{name} is {value}, expected at least {least}')

  one_of('precision', PRECISIONS)
  one_of('model.resample', unet.RESAMPLES)
  one_of('model.compat.downsample_padding', unet.PADDINGS)
  one_of('model.compat.embedding_order', unet.EMBEDDING_ORDERS)
  one_of('model.compat.embedding_shift', (0, 1))
  one_of('model.variant', unet.VARIANTS)
  one_of('model.init', unet.INITS)
  one_of('diffusion.schedule', schedules.SCHEDULES)
  one_of('diffusion.prediction', process_lib.PREDICTIONS)
  one_of('diffusion.loss', process_lib.LOSSES)
  one_of('diffusion.variance', process_lib.VARIANCES)
  one_of('diffusion.timesteps', noise_levels.SAMPLERS)
  one_of('optimizer.decay', adam.DECAYS)
  one_of('optimizer.clip', adam.CLIPS)
  one_of('distribute.strategy', strategy_lib.STRATEGIES)
  for name in (
      'diffusion.num_timesteps', 'optimizer.decay_steps', 'data.image_size',
      'model.image_channels', 'model.num_res_blocks', 'train.batch_size',
      'train.steps_per_loop', 'train.log_every_steps',
      'train.checkpoint_every_steps', 'train.keep_last', 'sample.steps',
      'model.num_heads', 'model.norm_groups', 'model.patch_size',
      'train.accumulation_steps',
  ):  # fmt: skip
    at_least(name, 1)
  for name in (
      'seed', 'optimizer.learning_rate', 'optimizer.warmup_steps',
      'optimizer.clip_norm', 'model.dropout', 'model.num_classes',
      'train.num_steps', 'train.sample_every_steps', 'train.keep_every_steps',
      'train.max_skipped_steps', 'train.grace_seconds',
      'distribute.virtual_devices', 'model.head_channels',
      'train.label_dropout', 'ema.rampup_ratio',
  ):  # fmt: skip
    at_least(name, 0)
  if not config.model.dropout < 1:
    raise ValueError(f'model.dropout is {config.model.dropout}, expected < 1')
  if config.sample.steps > config.diffusion.num_timesteps:
    raise ValueError(
        f'sample.steps is {config.sample.steps}, expected at most'
        f' diffusion.num_timesteps ({config.diffusion.num_timesteps})'
    )
  solvers.check(config.sample.sampler, config.sample.eta, prefix='sample.')
  if not config.model.channel_multipliers:
    raise ValueError('model.channel_multipliers is empty, expected (1, 2), say')
  if not (config.ema.decays or config.ema.power_stds):
    raise ValueError('ema.decays is empty, expected at least one, (0.9999,)')
  for decay in config.ema.decays:
    if not 0 <= decay < 1:
      raise ValueError(f'ema.decays has {decay}, expected 0 to 1, 1 excluded')
  for std in config.ema.power_stds:
    ema.power_exponent(std)
  _validate_process(config)
  unet.check_shapes(
      image_size=config.data.image_size,
      channels=config.model.channels,
      channel_multipliers=config.model.channel_multipliers,
      num_heads=config.model.num_heads,
      head_channels=config.model.head_channels,
      norm_groups=config.model.norm_groups,
      patch_size=config.model.patch_size,
  )


def _validate_process(config):
  """What of the diffusion process goes with what."""
  process, spacing = config.diffusion, config.sample
  if not 0 < spacing.sigma_min < spacing.sigma_max:
    raise ValueError(
        f'sample.sigma_min is {spacing.sigma_min} and sample.sigma_max'
        f' {spacing.sigma_max}, expected 0 < sigma_min < sigma_max'
    )
  if not spacing.rho > 0:
    raise ValueError(f'sample.rho is {spacing.rho}, expected more than 0')
  for name, partner in (('prediction', 'edm'), ('timesteps', 'lognormal')):
    if (process.schedule == 'edm') != (process[name] == partner):
      raise ValueError(
          f'diffusion.schedule is {process.schedule!r} and diffusion.{name}'
          f' {process[name]!r}: the schedule edm and the {name} {partner} go'
          ' together'
      )
  bound = process.loss in ('vlb', 'hybrid')
  if bound and process.schedule == 'edm':
    raise ValueError(
        f'diffusion.loss is {process.loss!r}, which the schedule edm does not'
        ' have: expected simple or min_snr'
    )
  learned = process.variance == 'learned_range'
  if (learned and not bound) or (process.loss == 'hybrid' and not learned):
    raise ValueError(
        f'diffusion.variance is {process.variance!r} and diffusion.loss'
        f' {process.loss!r}: learned_range is learned by the losses hybrid and'
        ' vlb, and hybrid needs it'
    )
  dropout = config.train.label_dropout
  if dropout and not config.model.num_classes:
    raise ValueError(
        f'train.label_dropout is {dropout}, but the model has no classes: set'
        ' model.num_classes'
    )
  if not dropout < 1:
    raise ValueError(f'train.label_dropout is {dropout}, expected < 1')


def save(config, workdir):
  """Writes WORKDIR/config.json."""
  path = os.path.join(workdir, 'config.json')
  fields = {'version': _VERSION} | config.to_dict()
  text = json.dumps(fields, indent=2) + '\n'
  files.write_file(path, text.encode())


def load(workdir):
  """Reads WORKDIR/config.json.

  Returns:
    A locked ConfigDict, or None if the workdir has none. A knob that is newer
    than the file has its default, which is what the run had.

  Raises:
    UserError: the file is not a config.
  """
  path = os.path.join(workdir, 'config.json')
  if not tf.io.gfile.exists(path):
    return None
  try:
    with tf.io.gfile.GFile(path) as f:
      fields = json.loads(f.read(), object_hook=_lists_to_tuples)
    version = fields.pop('version', 1)
    if version > _VERSION:
      raise ValueError(
          f'it is of version {version}, expected at most {_VERSION}: use the'
          ' ddpm that wrote it'
      )
    if version == 1:
      _rename_knobs(fields)
    config = defaults.get_config().lock()
    config.update(fields)
    return config
  except (ValueError, TypeError, KeyError) as e:
    raise UserError(f'{path} is not a config: {e}') from e


def _rename_knobs(fields):
  """Moves knobs of version 1 to where they are since; `fields` is changed."""
  for old, new in _RENAMED.items():
    group, name = old.split('.')
    if name not in fields.get(group, {}):
      continue
    value = fields[group].pop(name)
    *groups, name = new.split('.')
    place = fields
    for group in groups:
      place = place.setdefault(group, {})
    place[name] = value


def check_same_trajectory(config, workdir):
  """Raises UserError if a workdir's run is not this config's."""
  before = load(workdir)
  if before is None:
    return
  old, new = _flat(before), _flat(config)
  differ = [
      f'{name} {old.get(name)!r} -> {new.get(name)!r}'
      for name in sorted(old | new)
      if _defines_trajectory(name) and old.get(name) != new.get(name)
  ]
  if differ:
    raise UserError(
        f'{workdir} holds a run of another config: {", ".join(differ)}; use'
        ' another --workdir, or the values it was started with'
    )


def _defines_trajectory(name):
  if name in _NOT_TRAJECTORY:
    return False
  return any(name == t or name.startswith(t + '.') for t in _TRAJECTORY)


def _flat(config, prefix=''):
  fields = {}
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      fields |= _flat(value, f'{prefix}{name}.')
    else:
      fields[prefix + name] = value
  return fields


def _field(config, name):
  for part in name.split('.'):
    config = config[part]
  return config


def _lists_to_tuples(fields):
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
