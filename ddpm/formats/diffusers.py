"""Reads and writes Hugging Face diffusers models, without PyTorch.

A `DDPMPipeline` is a folder with

  model_index.json
  scheduler/scheduler_config.json: arguments of `DDPMScheduler`
  unet/config.json: arguments of `UNet2DModel`
  unet/diffusion_pytorch_model.safetensors: its weights, or those of a variant
    such as fp16, or an index of several files

Old pipelines have all files in one folder. A `UNet2DModel` alone has the
contents of unet/. If only one side supports a field, the error names it.
"""

import copy
import json
import os
import re

from absl import logging
import numpy as np
import safetensors.numpy

from ddpm.run import build
from ddpm.run import config as config_lib
from ddpm.runtime import files
from ddpm.runtime import strict_json
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

_VERSION = '0.42.1'
_WEIGHTS = 'diffusion_pytorch_model.safetensors'
# The same, its variants, and the indices of both.
_WEIGHT_FILE = re.compile(
    r'diffusion_pytorch_model(\.(?P<file>\w+))?\.safetensors'
    r'|diffusion_pytorch_model\.safetensors\.index(\.(?P<index>\w+))?\.json'
)

# Values of missing fields: the defaults of diffusers 0.42.
_UNET_DEFAULTS = {
    '_class_name': 'UNet2DModel',
    'sample_size': None,
    'in_channels': 3,
    'out_channels': 3,
    'center_input_sample': False,
    'time_embedding_type': 'positional',
    'time_embedding_dim': None,
    'freq_shift': 0,
    'flip_sin_to_cos': True,
    'down_block_types': ['DownBlock2D', *3 * ['AttnDownBlock2D']],
    'mid_block_type': 'UNetMidBlock2D',
    'up_block_types': [*3 * ['AttnUpBlock2D'], 'UpBlock2D'],
    'block_out_channels': [224, 448, 672, 896],
    'layers_per_block': 2,
    'mid_block_scale_factor': 1,
    'downsample_padding': 1,
    'downsample_type': 'conv',
    'upsample_type': 'conv',
    'dropout': 0.0,
    'act_fn': 'silu',
    'attention_head_dim': 8,
    'norm_num_groups': 32,
    'attn_norm_num_groups': None,
    'norm_eps': 1e-5,
    'resnet_time_scale_shift': 'default',
    'add_attention': True,
    'class_embed_type': None,
    'num_class_embeds': None,
    # Used only by the learned time embedding.
    'num_train_timesteps': None,
}
_SCHEDULER_DEFAULTS = {
    '_class_name': 'DDPMScheduler',
    'num_train_timesteps': 1000,
    'beta_start': 0.0001,
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'trained_betas': None,
    'variance_type': 'fixed_small',
    'clip_sample': True,
    'prediction_type': 'epsilon',
    'thresholding': False,
    'clip_sample_range': 1.0,
    'rescale_betas_zero_snr': False,
    # Used only by thresholding.
    'dynamic_thresholding_ratio': 0.995,
    'sample_max_value': 1.0,
    # Spacing of timesteps when sampling with fewer steps. Ours is 'linspace'.
    'timestep_spacing': 'leading',
    'steps_offset': 0,
}

# Fields with their only supported values.
_UNET_FIXED = {
    '_class_name': ['UNet2DModel'],
    'time_embedding_type': ['positional'],
    'center_input_sample': [False],
    'mid_block_type': ['UNetMidBlock2D'],
    'mid_block_scale_factor': [1],
    'act_fn': ['silu', 'swish'],
    'add_attention': [True],
    'class_embed_type': [None],
}
_SCHEDULER_FIXED = {
    '_class_name': ['DDPMScheduler'],
    'trained_betas': [None],
    'thresholding': [False],
    'clip_sample': [True],
    'clip_sample_range': [1.0],
    'rescale_betas_zero_snr': [False],
}

# Diffusers' values to ours. Of two names for one value, `save` writes the
# first.
_SCHEDULES = {'linear': 'linear', 'squaredcos_cap_v2': 'cosine'}
_PREDICTIONS = {'epsilon': 'eps', 'sample': 'x0', 'v_prediction': 'v'}
_VARIANCES = {
    'fixed_small': 'fixedsmall',
    'fixed_large': 'fixedlarge',
    'learned_range': 'learned_range',
    'fixed_small_log': 'fixedsmall',
    'fixed_large_log': 'fixedlarge',
}
_PADDINGS = {0: 'same', 1: 'symmetric'}
_ORDERS = {False: 'sin_cos', True: 'cos_sin'}
_SCALE_SHIFTS = {'default': False, 'scale_shift': True}
_RESAMPLES = {'conv': 'conv', 'resnet': 'block'}

# Block type -> (has attention, resampling). None: the fields downsample_type
# and upsample_type decide.
_DOWN_BLOCKS = {
    'DownBlock2D': (False, 'conv'),
    'ResnetDownsampleBlock2D': (False, 'resnet'),
    'AttnDownBlock2D': (True, None),
}
_UP_BLOCKS = {
    'UpBlock2D': (False, 'conv'),
    'ResnetUpsampleBlock2D': (False, 'resnet'),
    'AttnUpBlock2D': (True, None),
}

# Layers whose names differ, ours to theirs.
_LAYERS = {
    'time_dense1': 'time_embedding.linear_1',
    'time_dense2': 'time_embedding.linear_2',
    'norm_out': 'conv_norm_out',
    'time_dense': 'time_emb_proj',
    'skip': 'conv_shortcut',
    'norm': 'group_norm',
    'query': 'to_q',
    'key': 'to_k',
    'value': 'to_v',
    'out': 'to_out.0',
}
_GROUPS = {
    'block': 'resnets',
    'attention': 'attentions',
    'downsample': 'downsamplers',
    'upsample': 'upsamplers',
}
_KINDS = {
    'kernel': 'weight',
    'gamma': 'weight',
    'embeddings': 'weight',
    'bias': 'bias',
    'beta': 'bias',
}
# Names of attention layers before diffusers 0.15, to today's.
_OLD_LAYERS = {
    'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0',
}  # fmt: skip


def load(directory, config):
  """Reads a model.

  Args:
    directory: folder of a `DDPMPipeline` or `UNet2DModel`.
    config: supplies what the folder lacks: data, optimizer and so on, and the
      diffusion process if there is no scheduler. If its train.label_dropout is
      not 0, the folder's last class is the null class.

  Returns:
    config (locked and valid), its model, and the weights, float32 array [P].
    The weights are not loaded into the model.

  Raises:
    UserError: the folder cannot be read, or ddpm does not support its model.
  """
  config = copy.deepcopy(config).unlock()
  unet = os.path.join(directory, 'unet')
  if not os.path.isdir(unet):
    unet = directory
  try:
    scheduler = _find_scheduler(directory)
    if scheduler:
      settings = _process_settings(scheduler, config.diffusion)
      config.update_from_flattened_dict(settings)
    settings = _model_settings(
        os.path.join(unet, 'config.json'),
        learned_variance=config.diffusion.variance == 'learned_range',
        null_class=config.train.label_dropout > 0,
    )
    config.update_from_flattened_dict(settings)
  except (TypeError, ValueError, AttributeError) as e:
    raise UserError(f'{directory} cannot be converted: {e}') from e
  config.sample.steps = min(
      config.sample.steps, config.diffusion.num_timesteps
  )
  config_lib.validate(config)
  model = build.make_model(config)
  return config.lock(), model, _load_weights(unet, model)


def save(directory, config, model, params):
  """Writes a model as a `DDPMPipeline`.

  Args:
    directory: folder to write.
    config: the model's config.
    model: `unet.UNet`.
    params: float32 array [P], the weights.

  Raises:
    UserError: diffusers does not support the model, or the folder cannot be
      written.
  """
  unet, scheduler = _unet_fields(config), _scheduler_fields(config)
  index = {
      '_class_name': 'DDPMPipeline',
      'scheduler': ['diffusers', 'DDPMScheduler'],
      'unet': ['diffusers', 'UNet2DModel'],
  }
  for name, fields in (
      ('model_index.json', index),
      ('scheduler/scheduler_config.json', scheduler),
      ('unet/config.json', unet),
  ):
    fields = fields | {'_diffusers_version': _VERSION}
    text = strict_json.dumps(fields, indent=2)
    files.write_file(os.path.join(directory, name), f'{text}\n'.encode())
  variables = model.trainable_variables
  ends = np.cumsum([v.shape.num_elements() for v in variables])
  names = _tensor_names(model)
  tensors = {
      names[v.path]: np.ascontiguousarray(
          _to_torch(v.path, part.reshape(v.shape))
      )
      for v, part in zip(variables, np.split(params, ends[:-1]))
  }
  data = safetensors.numpy.save(tensors, {'format': 'pt'})
  files.write_file(os.path.join(directory, 'unet', _WEIGHTS), data)


def _find_scheduler(directory):
  """Path of the scheduler's config; None for a UNet2DModel alone."""
  for path in ('scheduler/scheduler_config.json', 'scheduler_config.json'):
    path = os.path.join(directory, path)
    if os.path.exists(path):
      break
  else:
    path = None
  index = os.path.join(directory, 'model_index.json')
  if os.path.exists(index):
    _expect(index, _read_json(index), '_class_name', ['DDPMPipeline'])
    if not path:
      raise UserError(f'{directory} has no scheduler/scheduler_config.json')
  elif not path:
    logging.warning(
        '%s has no scheduler: using the diffusion process of the config',
        directory,
    )
  return path


def _process_settings(path, process):
  """Our settings for a scheduler; `process` is the original config's."""
  fields = _read_fields(path, _SCHEDULER_DEFAULTS, _SCHEDULER_FIXED)
  variance = _translate(path, fields, 'variance_type', _VARIANCES)
  loss = process.loss
  if variance == 'learned_range':
    loss = 'vlb' if loss == 'vlb' else 'hybrid'
  elif loss == 'hybrid':
    loss = 'simple'
  return {
      'diffusion.num_timesteps': fields['num_train_timesteps'],
      'diffusion.schedule': _translate(
          path, fields, 'beta_schedule', _SCHEDULES
      ),
      'diffusion.beta_start': fields['beta_start'],
      'diffusion.beta_end': fields['beta_end'],
      'diffusion.prediction': _translate(
          path, fields, 'prediction_type', _PREDICTIONS
      ),
      'diffusion.rescale_timesteps': False,
      'diffusion.variance': variance,
      'diffusion.loss': loss,
      'diffusion.timesteps': (
          'uniform' if process.timesteps == 'lognormal' else process.timesteps
      ),
  }


def _model_settings(path, *, learned_variance, null_class):
  """Our settings for a UNet2DModel."""
  fields = _read_fields(path, _UNET_DEFAULTS, _UNET_FIXED)
  size = fields['sample_size']
  if isinstance(size, list):
    size = size[0] if len(set(size)) == 1 else tuple(size)
  height, *rest = size if isinstance(size, tuple) else (size, size)
  if len(rest) != 1 or not all(isinstance(n, int) for n in (height, *rest)):
    raise _refusal(path, 'sample_size', size, 'height, or [height, width]')
  widths = fields['block_out_channels']
  if not widths or not all(isinstance(w, int) and w > 0 for w in widths):
    raise _refusal(
        path, 'block_out_channels', widths, 'the channels of each level'
    )
  channels = widths[0]
  outputs = fields['in_channels'] * (1 + learned_variance)
  if fields['out_channels'] != outputs:
    raise _refusal(
        path,
        'out_channels',
        fields['out_channels'],
        f"{outputs}: in_channels, doubled if the scheduler's variance_type is"
        ' learned_range',
    )
  scale_shift = _translate(
      path, fields, 'resnet_time_scale_shift', _SCALE_SHIFTS
  )
  # None means no norm in the middle attention if scale_shift is set.
  groups = [fields['norm_num_groups']] + ([] if scale_shift else [None])
  _expect(path, fields, 'attn_norm_num_groups', groups)
  _expect(path, fields, 'time_embedding_dim', [None, 4 * channels])
  attends, resample = _levels(path, fields)
  classes = fields['num_class_embeds'] or 0
  return {
      'data.image_size': size,
      'model.image_channels': fields['in_channels'],
      'model.channels': channels,
      'model.channel_multipliers': tuple(
          w / channels if w % channels else w // channels for w in widths
      ),
      'model.num_res_blocks': fields['layers_per_block'],
      'model.attention_resolutions': tuple(
          height // 2**level for level, yes in enumerate(attends) if yes
      ),
      'model.num_heads': 1,
      'model.head_channels': fields['attention_head_dim'] or 0,
      'model.dropout': float(fields['dropout']),
      'model.num_classes': max(0, classes - null_class),
      'model.norm_groups': fields['norm_num_groups'],
      'model.norm_epsilon': fields['norm_eps'],
      'model.patch_size': 1,
      'model.scale_shift_norm': scale_shift,
      'model.resample': resample,
      'model.compat.downsample_padding': _translate(
          path, fields, 'downsample_padding', _PADDINGS
      ),
      'model.compat.embedding_order': _translate(
          path, fields, 'flip_sin_to_cos', _ORDERS
      ),
      'model.compat.embedding_shift': _expect(
          path, fields, 'freq_shift', [0, 1]
      ),
      'model.variant': 'ddpm',
  }


def _levels(path, fields):
  """Returns whether each level has attention, and the common resampling."""
  for name, blocks in (
      ('down_block_types', _DOWN_BLOCKS),
      ('up_block_types', _UP_BLOCKS),
  ):
    if len(fields[name]) != len(fields['block_out_channels']):
      raise _refusal(
          path, name, fields[name], 'as many as in block_out_channels'
      )
    if not set(fields[name]) <= blocks.keys():
      raise _refusal(
          path, name, fields[name], f'only {", ".join(blocks)}'
      )
  # Indexed by level; the up path ends at level 0.
  down = [_DOWN_BLOCKS[name] for name in fields['down_block_types']]
  up = [_UP_BLOCKS[name] for name in reversed(fields['up_block_types'])]
  attends = [attention for attention, _ in down]
  if attends != [attention for attention, _ in up]:
    raise _refusal(
        path,
        'up_block_types',
        fields['up_block_types'],
        'attention at the same levels as in down_block_types',
    )
  # The last level has no downsampling, the first no upsampling.
  ways = {way or fields['downsample_type'] for _, way in down[:-1]}
  ways |= {way or fields['upsample_type'] for _, way in up[1:]}
  if len(ways) > 1 or not ways <= _RESAMPLES.keys():
    raise UserError(
        f'{path}: down_block_types, up_block_types, downsample_type and'
        f' upsample_type resample by {", ".join(sorted(ways))}, expected conv'
        ' at all levels or resnet at all levels'
    )
  return attends, _RESAMPLES[ways.pop() if ways else 'conv']


def _unet_fields(config):
  """The fields of the UNet2DModel for a config."""
  model = config.model
  for name, value, only in (
      ('model.patch_size', model.patch_size, 1),
      ('model.variant', model.variant, 'ddpm'),
      ('model.channel_multipliers[0]', model.channel_multipliers[0], 1),
  ):
    if value != only:
      raise UserError(
          f'{name} is {value!r}, which diffusers does not support, expected'
          f' {only!r}'
      )
  height, width = build.image_size(config)
  widths = [round(model.channels * m) for m in model.channel_multipliers]
  attends = [
      height // 2**level in model.attention_resolutions
      for level in range(len(widths))
  ]
  way = _theirs(_RESAMPLES, model.resample)
  down, up = [
      [
          next(
              name
              for name, kind in blocks.items()
              if kind == ((True, None) if attention else (False, way))
          )
          for attention in attends
      ]
      for blocks in (_DOWN_BLOCKS, _UP_BLOCKS)
  ]
  outputs = 1 + (config.diffusion.variance == 'learned_range')
  classes = model.num_classes + (config.train.label_dropout > 0)
  return _UNET_DEFAULTS | {
      'sample_size': height if height == width else [height, width],
      'in_channels': model.image_channels,
      'out_channels': model.image_channels * outputs,
      'freq_shift': model.compat.embedding_shift,
      'flip_sin_to_cos': _theirs(_ORDERS, model.compat.embedding_order),
      'down_block_types': down,
      'up_block_types': up[::-1],
      'block_out_channels': widths,
      'layers_per_block': model.num_res_blocks,
      'downsample_padding': _theirs(_PADDINGS, model.compat.downsample_padding),
      'downsample_type': way,
      'upsample_type': way,
      'dropout': model.dropout,
      'attention_head_dim': _head_channels(model, widths, attends),
      'norm_num_groups': model.norm_groups,
      'attn_norm_num_groups': model.norm_groups,
      'norm_eps': model.norm_epsilon,
      'resnet_time_scale_shift': _theirs(
          _SCALE_SHIFTS, model.scale_shift_norm
      ),
      'num_class_embeds': classes if model.num_classes else None,
  }


def _head_channels(model, widths, attends):
  """attention_head_dim, the same at all levels; None for one head."""
  if model.head_channels or model.num_heads == 1:
    return model.head_channels or None
  # The middle is as wide as the last level and always has attention.
  heads = {
      width // model.num_heads
      for width, attention in zip(widths, [*attends[:-1], True])
      if attention
  }
  if len(heads) > 1:
    raise UserError(
        f'model.num_heads is {model.num_heads}, with'
        f' {", ".join(map(str, sorted(heads)))} channels per head at different'
        ' levels, but diffusers supports one number: expected num_heads 1 or'
        ' model.head_channels'
    )
  return heads.pop()


def _scheduler_fields(config):
  """The fields of the DDPMScheduler for a config."""
  process = config.diffusion
  if process.prediction not in _PREDICTIONS.values():
    raise UserError(
        f'diffusion.prediction is {process.prediction!r}, which diffusers does'
        f' not support, expected one of {", ".join(_PREDICTIONS.values())}'
    )
  if process.rescale_timesteps and process.num_timesteps != 1000:
    raise UserError(
        'diffusion.rescale_timesteps is True with'
        f' {process.num_timesteps} timesteps, expected False or 1000 timesteps:'
        " diffusers' networks take t unscaled"
    )
  return _SCHEDULER_DEFAULTS | {
      'num_train_timesteps': process.num_timesteps,
      'beta_start': process.beta_start,
      'beta_end': process.beta_end,
      'beta_schedule': _theirs(_SCHEDULES, process.schedule),
      'variance_type': _theirs(_VARIANCES, process.variance),
      'prediction_type': _theirs(_PREDICTIONS, process.prediction),
      'timestep_spacing': 'linspace',
  }


def _load_weights(directory, model):
  """Reads a model's weights, float32 array [P], from a folder."""
  tensors = {_modern(k): v for k, v in _read_tensors(directory).items()}
  names = _tensor_names(model)
  shapes = {
      names[v.path]: _to_torch(v.path, np.broadcast_to(0.0, v.shape)).shape
      for v in model.trainable_variables
  }
  wrong = [f'{name} is missing' for name in shapes.keys() - tensors.keys()]
  wrong += [f'{name} is unknown' for name in tensors.keys() - shapes.keys()]
  wrong += [
      f'{name} is {list(tensors[name].shape)}, expected {list(shape)}'
      for name, shape in shapes.items()
      if name in tensors and tensors[name].shape != shape
  ]
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise UserError(
        f'the weights in {directory} do not match its config.json:'
        f' {"; ".join(sorted(wrong)[:3])}{more}'
    )
  params = [
      _from_torch(v.path, tensors[names[v.path]]).astype(np.float32).ravel()
      for v in model.trainable_variables
  ]
  bad = [
      names[v.path]
      for v, values in zip(model.trainable_variables, params)
      if not np.isfinite(values).all()
  ]
  if bad:
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    raise UserError(
        f'{directory} has weights that are not finite:'
        f' {", ".join(bad[:3])}{more}: save or download them again'
    )
  return np.concatenate(params)


def _read_tensors(directory):
  """All tensors of a folder, from one file or from shards with an index."""
  tensors = {}
  for name in _weight_files(directory):
    path = os.path.join(directory, name)
    try:
      with safetensors.safe_open(path, framework='np') as file:
        for key in file.keys():  # noqa: SIM118 - not a dict.
          tensors[key] = file.get_tensor(key)
          if tensors[key].dtype.itemsize == 1:
            raise TypeError(f'{key} is {tensors[key].dtype}')
    except (OSError, TypeError, safetensors.SafetensorError) as e:
      raise UserError(f'{path} cannot be read: {reason(e)}') from e
  return tensors


def _weight_files(directory):
  """Names of the safetensors files that hold a folder's weights.

  Diffusers' variants, such as fp16, are in diffusion_pytorch_model.fp16.
  safetensors, or diffusion_pytorch_model.safetensors.index.fp16.json lists
  their files.
  """
  found = {}  # Variant, '' for none, to its one file or the index of several.
  for name in sorted(os.listdir(directory)):
    if match := _WEIGHT_FILE.fullmatch(name):
      found[match['file'] or match['index'] or ''] = name
  if not found:
    raise UserError(
        f'{directory} has no {_WEIGHTS}: save it from diffusers with'
        ' save_pretrained(..., safe_serialization=True)'
    )
  if '' not in found and len(found) > 1:
    raise UserError(
        f'{directory} has the variants {", ".join(found)} of its weights,'
        ' expected one: remove the others'
    )
  name = found.get('', next(iter(found.values())))
  if not name.endswith('.json'):
    return [name]
  path = os.path.join(directory, name)
  files_of = _read_json(path).get('weight_map')
  if not isinstance(files_of, dict):
    raise _refusal(path, 'weight_map', files_of, 'a file for each weight')
  return sorted(set(files_of.values()))


def _modern(name):
  """The current name of a tensor, which may have an old one."""
  return re.sub(
      rf'(\.attentions\.\d+\.)({"|".join(_OLD_LAYERS)})(?=\.)',
      lambda match: match[1] + _OLD_LAYERS[match[2]],
      name,
  )


def _tensor_names(model):
  """Path in `unet.UNet` -> diffusers' name, for each weight."""
  paths = [v.path for v in model.trainable_variables]
  last_level = max(
      int(match[1]) for path in paths if (match := re.match(r'up(\d+)_', path))
  )
  return {path: _tensor_name(path, last_level) for path in paths}


def _tensor_name(path, last_level):
  top, *inner, kind = path.split('/')
  match = re.fullmatch(r'(down|mid|up)(\d*)_([a-z]+)(\d*)', top)
  if not match:
    return f'{_LAYERS.get(top, top)}.{_KINDS[kind]}'
  side, level, group, index = match.groups()
  if side == 'up':
    level = last_level - int(level)
  # In diffusers the downsampling convolution is nested in a layer.
  if group == 'downsample' and not inner:
    inner = ['conv']
  block = 'mid_block' if side == 'mid' else f'{side}_blocks.{level}'
  layer = '.'.join(_LAYERS.get(name, name) for name in inner)
  return f'{block}.{_GROUPS[group]}.{index or 0}.{layer}.{_KINDS[kind]}'


def _to_torch(path, weight):
  """HWIO to OIHW, [in, out] to [out, in]; skip is 1x1 there, dense here."""
  if path.endswith('/embeddings'):
    return weight
  if weight.ndim == 4:
    return weight.transpose(3, 2, 0, 1)
  tensor = weight.T
  return tensor[:, :, None, None] if path.endswith('/skip/kernel') else tensor


def _from_torch(path, tensor):
  """Inverse of `_to_torch`."""
  if path.endswith('/embeddings'):
    return tensor
  if path.endswith('/skip/kernel'):
    tensor = tensor[:, :, 0, 0]
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _read_json(path):
  try:
    with open(path, encoding='utf-8') as f:
      fields = json.load(f)
  except OSError as e:
    raise UserError(f'{path} cannot be read: {reason(e)}') from e
  except ValueError as e:
    raise UserError(f'{path} is not JSON: {e}') from e
  if not isinstance(fields, dict):
    raise UserError(f'{path} is not a JSON object')
  return fields


def _read_fields(path, defaults, fixed):
  """The fields of a file, with defaults for missing ones."""
  fields = _read_json(path)
  for name in sorted(fields.keys() - defaults.keys()):
    if not name.startswith('_'):
      logging.warning('%s: ignoring unknown field %s', path, name)
  fields = defaults | fields
  for name, values in fixed.items():
    _expect(path, fields, name, values)
  return fields


def _expect(path, fields, name, values):
  """Returns a field; raises UserError unless its value is in `values`."""
  value = fields.get(name)
  if value not in values:
    expected = ' or '.join(map(repr, values))
    raise _refusal(path, name, value, expected)
  return value


def _translate(path, fields, name, table):
  """Our value for a field's."""
  return table[_expect(path, fields, name, list(table))]


def _theirs(table, ours):
  """Diffusers' value for ours; the first of several."""
  return next(theirs for theirs, value in table.items() if value == ours)


def _refusal(path, name, value, expected):
  return UserError(f'{path}: {name} is {value!r}, expected {expected}')
