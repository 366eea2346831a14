"""The config of a run: checked before any work, and kept in the workdir."""

import json
import numbers
import os

from ml_collections import config_dict
import tensorflow as tf

from ddpm.data import folder
from ddpm.data import resize
from ddpm.nn import unet
from ddpm.run import build
from ddpm.run import defaults
from ddpm.runtime import files
from ddpm.runtime import precision
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import UserError

# These define a run's trajectory, and may not change in a workdir.
_TRAJECTORY = (
    'seed', 'precision', 'data', 'model', 'diffusion', 'optimizer', 'ema',
    'train.batch_size', 'train.label_dropout',
)  # fmt: skip

# Where the data is does not change the data, nor do broken files that are not
# there: its hash is checked (`trainer`).
_NOT_TRAJECTORY = ('data.data_dir', 'data.on_error')

# What no object of `build` checks. Minimum of each number:
_LEAST = dict.fromkeys((
    'model.image_channels', 'model.num_res_blocks', 'model.num_heads',
    'model.norm_groups', 'model.patch_size',
    'train.batch_size', 'train.accumulation_steps', 'train.steps_per_loop',
    'train.log_every_steps', 'train.checkpoint_every_steps', 'train.keep_last',
), 1) | dict.fromkeys((
    'seed', 'model.dropout', 'model.num_classes', 'model.head_channels',
    'train.label_dropout', 'train.num_steps', 'train.sample_every_steps',
    'train.keep_every_steps', 'train.max_skipped_steps', 'train.grace_seconds',
    'distribute.virtual_devices',
), 0)  # fmt: skip
# Allowed strings:
_CHOICES = {
    'precision': precision.PRECISIONS,
    'data.resize': resize.RULES,
    'data.labels': folder.LABELS,
    'data.unlabelled': ('refuse', 'null'),
    'data.on_error': ('stop', 'skip'),
    'model.resample': unet.RESAMPLES,
    'model.compat.downsample_padding': unet.PADDINGS,
    'model.compat.embedding_order': unet.EMBEDDING_ORDERS,
    'model.compat.embedding_shift': (0, 1),
    'model.variant': unet.VARIANTS,
    'model.init': unet.INITS,
    'distribute.strategy': strategy_lib.STRATEGIES,
    'distribute.all_reduce_dtype': ('float32', 'bfloat16'),
}

# Of config.json. Version 1 had no number; up to version 2, precision float32
# was what tf32 is now.
_VERSION = 3
# New names of version 1's settings.
_RENAMED = {
    'model.downsample_padding': 'model.compat.downsample_padding',
    'model.embedding_order': 'model.compat.embedding_order',
    'model.embedding_shift': 'model.compat.embedding_shift',
    'model.remat': 'train.remat',
    'diffusion.sigma_min': 'sample.sigma_min',
    'diffusion.sigma_max': 'sample.sigma_max',
    'diffusion.rho': 'sample.rho',
}


def validate(config):
  """Raises UserError for the first thing in a config that cannot work.

  The objects of a run check their own arguments when `build` makes them; here
  their messages get the setting's group. What no object checks is checked here.
  """
  for name, least in _LEAST.items():
    value = _field(config, name)
    if not isinstance(value, numbers.Real) or not value >= least:
      raise UserError(f'config.{name} is {value}, expected at least {least}')
  for name, choices in _CHOICES.items():
    value = _field(config, name)
    if value not in choices:
      expected = ', '.join(map(str, choices))
      raise UserError(
          f'config.{name} is {value!r}, expected one of: {expected}'
      )
  for group, check in (
      ('data', build.image_size),
      ('sample', build.make_spacing),
      ('diffusion', build.make_process),
      ('sample', build.make_sampler_spec),
      ('diffusion', build.make_loss),
      ('diffusion', build.make_noise_levels),
      ('optimizer', build.make_optimizer),
      ('optimizer', build.make_clip),
      ('ema', build.make_emas),
      ('model', _check_model),
      ('train', _check_label_dropout),
      ('data', _check_unlabelled),
  ):
    try:
      check(config)
    except ValueError as e:
      raise UserError(f'config.{group}.{e}') from e
    except TypeError as e:
      raise UserError(
          f'config.{group} has a value of the wrong type: {e}'
      ) from e


def _check_model(config):
  model = config.model
  unet.check_shapes(
      image_size=build.image_size(config),
      channels=model.channels,
      channel_multipliers=model.channel_multipliers,
      num_heads=model.num_heads,
      head_channels=model.head_channels,
      norm_groups=model.norm_groups,
      patch_size=model.patch_size,
  )
  if not model.dropout < 1:
    raise ValueError(f'dropout is {model.dropout}, expected below 1')


def _check_label_dropout(config):
  dropout = config.train.label_dropout
  if dropout and not config.model.num_classes:
    raise ValueError(
        f'label_dropout is {dropout}, but the model has no classes: set'
        ' model.num_classes'
    )
  if not dropout < 1:
    raise ValueError(f'label_dropout is {dropout}, expected below 1')


def _check_unlabelled(config):
  if config.data.unlabelled == 'null' and not config.train.label_dropout:
    raise ValueError(
        'unlabelled is null, which needs a model trained with and without its'
        ' classes: set train.label_dropout=0.1, for example'
    )


def save(config, workdir):
  """Writes WORKDIR/config.json."""
  path = os.path.join(workdir, 'config.json')
  fields = {'version': _VERSION} | config.to_dict()
  text = json.dumps(fields, indent=2) + '\n'
  files.write_file(path, text.encode())


def load(workdir):
  """Reads WORKDIR/config.json.

  Returns:
    A locked ConfigDict, or None if the workdir has none. A setting that is
    newer than the file has its default, which is what the run had.

  Raises:
    UserError: the file is not a config.
  """
  path = os.path.join(workdir, 'config.json')
  if not tf.io.gfile.exists(path):
    return None
  try:
    with tf.io.gfile.GFile(path) as f:
      fields = json.loads(f.read(), object_hook=_lists_to_tuples)
    if not isinstance(fields, dict):
      raise ValueError('expected a JSON object')
    version = fields.pop('version', 1)
    if version > _VERSION:
      raise ValueError(
          f'it is of version {version}, expected at most {_VERSION}: use the'
          ' ddpm that wrote it'
      )
    if version == 1:
      _rename_settings(fields)
    if version < 3 and fields.get('precision') == 'float32':
      fields['precision'] = 'tf32'
    config = defaults.get_config().lock()
    config.update(fields)
    return config
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise UserError(f'{path} is not a config: {e}') from e


def _rename_settings(fields):
  """Moves version 1's settings to their new names, in place."""
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
  old, new = flatten(before), flatten(config)
  differ = [
      f'{name} {old.get(name)!r} -> {new.get(name)!r}'
      for name in sorted(old | new)
      if _defines_trajectory(name) and not _same(old.get(name), new.get(name))
  ]
  if differ:
    raise UserError(
        f'{workdir} holds a run of another config: {", ".join(differ)}; use'
        ' another workdir, or the values it was started with'
    )


def _same(old, new):
  """Whether a setting is the same; a folder may have moved."""
  folders = all(str(value).startswith('folder:') for value in (old, new))
  return folders or old == new


def _defines_trajectory(name):
  if name in _NOT_TRAJECTORY:
    return False
  return any(name == t or name.startswith(t + '.') for t in _TRAJECTORY)


def flatten(config, prefix=''):
  """A config's settings as one dict, {'train.batch_size': 128, ...}."""
  fields = {}
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      fields |= flatten(value, f'{prefix}{name}.')
    else:
      fields[prefix + name] = value
  return fields


def _field(config, name):
  for part in name.split('.'):
    config = config[part]
  return config


def _lists_to_tuples(fields):
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
