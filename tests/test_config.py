"""Every refusal by its message; what a workdir keeps."""

import importlib
import json
import logging
import pathlib
import re
from unittest import mock

from absl import flags
from ml_collections import config_dict
import pytest

from configs import cifar10_edm
from configs import cifar10_iddpm
from configs import default
from configs import imagenet64
from configs import mnist5k
from ddpm.run import build
from ddpm.run import config as config_lib
from ddpm.runtime.errors import UserError

CONFIGS = sorted(
    path.stem
    for path in pathlib.Path(default.__file__).parent.glob('*.py')
    if path.stem not in ('__init__', 'folder', 'workdir')
)


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_are_valid_and_open_with_their_command(name):
  module = importlib.import_module(f'configs.{name}')
  config_lib.validate(module.get_config().lock())
  if module is not default:
    commands = re.findall(rf'--config=configs/{name}.py:?(\w*)', module.__doc__)
    assert commands[0] == ''
    for variant in commands[1:]:
      config_lib.validate(module.get_config(variant).lock())
    assert '--workdir=' in module.__doc__


@pytest.mark.parametrize('module', [cifar10_edm, cifar10_iddpm, imagenet64])
def test_an_unknown_variant_is_refused(module):
  with pytest.raises(flags.Error, match="is 'large', expected"):
    module.get_config('large')


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('precision', 'float64', "precision is 'float64', expected one of"),
        ('diffusion.schedule', 'sqrt', "schedule is 'sqrt', expected .* edm"),
        ('diffusion.prediction', 'z', "prediction is 'z', expected one of"),
        ('diffusion.loss', 'l1', "loss is 'l1', expected one of: simple"),
        ('diffusion.variance', 'x', "variance is 'x', expected one of"),
        ('optimizer.decay', 'step', "decay is 'step', expected one of"),
        ('optimizer.clip', 'value', "clip is 'value', expected one of"),
        ('sample.sampler', 'euler', "sampler is 'euler', expected one of"),
        ('distribute.strategy', 'gpu', "strategy is 'gpu', expected one of"),
        ('train.batch_size', 0, 'batch_size is 0, expected at least 1'),
        ('train.batch_size', None, 'batch_size is None, expected at least 1'),
        ('seed', -1, 'seed is -1, expected at least 0'),
        ('model.dropout', 1.0, 'dropout is 1.0, expected below 1'),
        ('sample.steps', 1001, 'steps is 1001, expected at most'),
        ('diffusion.num_timesteps', 0, 'num_timesteps is 0, expected at'),
        ('sample.eta', 1.5, 'sample.eta is 1.5, expected 0 to 1'),
        ('sample.sigma_min', 90.0, 'sample.sigma_min is 90.0 and sigma_max'),
        ('sample.rho', 0.0, 'sample.rho is 0.0, expected more than 0'),
        ('model.channel_multipliers', (), 'channel_multipliers is empty'),
        ('ema.decays', (), 'decays is empty'),
        ('ema.decays', (1.0,), 'decays has 1.0'),
        ('ema.decays', ('a',), 'config.ema has a value of the wrong type: '),
        ('data.image_size', 30, 'image size 30 is not divisible by 4'),
        ('data.image_size', (28, 30), r'size \(28, 30\) is not .*=\(28, 32\)'),
        ('data.image_size', (28, 28, 3), 'expected a number of pixels, or'),
        ('data.image_size', 28.5, 'expected a number of pixels, or'),
        ('data.image_size', 'large', 'expected a number of pixels, or'),
        ('data.image_size', 0, 'expected a number of pixels, or'),
        ('data.resize', 'crop', 'expected one of: center_crop, random_crop'),
        ('model.channel_multipliers', (0, 1), 'channel_multipliers has 0, exp'),
        ('model.channel_multipliers', (1, -2), 'channel_multipliers has -2'),
        ('model.channel_multipliers', (1, '2'), "multipliers has '2', exp"),
        ('model.channel_multipliers', (1, (2,)), r'multipliers has \(2,\), e'),
        ('model.channel_multipliers', (1, None), 'multipliers has None, exp'),
        ('model.channel_multipliers', (1, 1.01), 'multipliers has 1.01, exp'),
        ('model.channel_multipliers', (1, float('nan')), r'is \(1, nan\), exp'),
        ('ema.decays', (float('nan'),), r'decays is \(nan,\), expected a fin'),
        ('optimizer.clip_norm', float('inf'), 'clip_norm is inf, expected a f'),
        ('model.norm_epsilon', 0.0, 'norm_epsilon is 0.0, expected more than'),
        ('model.norm_epsilon', float('nan'), 'epsilon is nan, expected a fin'),
        ('model.norm_groups', 7, 'model.norm_groups is 7, which does not'),
        ('model.head_channels', 7, 'model.head_channels is 7, which does not'),
        ('model.resample', 'fft', "resample is 'fft', expected one of: conv"),
        ('model.compat.downsample_padding', 'x', "padding is 'x', expected"),
        ('model.compat.embedding_order', 'x', "order is 'x', expected one of"),
        ('model.compat.embedding_shift', 2, 'shift is 2, expected one of'),
        ('model.variant', 'adm', "variant is 'adm', expected one of: ddpm"),
        ('model.init', 'x', "init is 'x', expected one of: ho"),
        ('diffusion.timesteps', 'x', "timesteps is 'x', expected one of"),
        ('diffusion.schedule', 'edm', 'the prediction edm and'),
        ('diffusion.prediction', 'edm', 'the prediction edm and'),
        ('diffusion.timesteps', 'lognormal', 'lognormal timesteps and the'),
        ('diffusion.loss', 'hybrid', 'hybrid needs it'),
        ('diffusion.variance', 'learned_range', 'learn a learned_range'),
        ('train.label_dropout', 0.1, 'the model has no classes'),
        ('train.accumulation_steps', 0, 'accumulation_steps is 0, expected at'),
        ('ema.power_stds', (0.5,), "power_stds has 0.5: a power-function EMA"),
    ],
)
def test_refuses(name, value, message):
  config = mnist5k.get_config()
  config.model.num_classes = 0
  config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError, match=message) as error:
    config_lib.validate(config)
  # It begins with a setting, as a flag has it.
  assert re.match(r'config\.\w+(\.\w+)* ', str(error.value))


@pytest.mark.parametrize(
    'settings',
    [
        {'channels': 32, 'channel_multipliers': (1, 1.5)},
        {'channels': 224, 'channel_multipliers': (1, 300 / 224),
         'norm_groups': 4},
        # Only levels that attend have heads.
        {'channels': 32, 'channel_multipliers': (1, 2), 'head_channels': 64},
    ],
)  # fmt: skip
def test_what_networks_there_are(settings):
  config = mnist5k.get_config()
  config.model.update({'patch_size': 2, 'norm_groups': 16} | settings)
  config_lib.validate(config)


def test_the_schedule_edm_has_no_bound():
  config = cifar10_edm.get_config()
  config.diffusion.loss = 'vlb'
  with pytest.raises(UserError, match="loss is 'vlb', which the schedule edm"):
    config_lib.validate(config)


def test_what_an_older_workdir_lacks_has_its_default(tmp_path):
  fields = mnist5k.get_config().to_dict()
  del fields['model']['resample'], fields['ema']['power_stds']
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(fields))
  loaded = config_lib.load(str(tmp_path))
  expected = mnist5k.get_config()
  expected.data.shuffle_rounds = 4
  assert loaded.to_dict() == expected.to_dict()
  # The same command goes on with it.
  config = config_lib.continued(mnist5k.get_config(), str(tmp_path))
  assert config.to_dict() == loaded.to_dict()


def test_what_a_workdir_has_beyond_the_settings_is_not_used(tmp_path, caplog):
  """Older versions trained with it, and wrote it there."""
  fields = mnist5k.get_config().to_dict()
  fields['notes'] = 'x'
  fields['model']['wings'] = 2
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(fields))
  logger = logging.getLogger('absl')
  with mock.patch.object(logger, 'propagate', True):
    loaded = config_lib.load(str(tmp_path))
  assert 'notes' not in loaded and 'wings' not in loaded.model
  assert [record.getMessage() for record in caplog.records] == [
      f'{path}: {name} is no setting, and is not used'
      for name in ('model.wings', 'notes')
  ]


@pytest.mark.parametrize(
    'name, message',
    [
        ('optimizer.lr', 'config.optimizer.lr is no setting'),
        ('model.head', 'model.head is no setting: did you mean config.model.'),
        ('seeed', 'config.seeed is no setting: did you mean config.seed?'),
    ],
)
def test_what_is_no_setting_is_refused(name, message):
  config = mnist5k.get_config()
  with config.unlocked():
    config.update_from_flattened_dict({name: 2})
  with pytest.raises(UserError, match=re.escape(message)):
    config_lib.validate(config)


def test_what_is_missing_or_no_config_is_refused():
  config = mnist5k.get_config()
  with config.unlocked():
    del config.model.dropout
  with pytest.raises(UserError, match=r'config\.model\.dropout is missing'):
    config_lib.validate(config)
  for none in (None, {'seed': 1}, 5):
    with pytest.raises(UserError, match='expected a ConfigDict'):
      config_lib.validate(none)


def test_a_workdir_describes_itself(tmp_path):
  assert config_lib.load(str(tmp_path)) is None
  config = mnist5k.get_config()
  config_lib.save(config, str(tmp_path))
  loaded = config_lib.load(str(tmp_path))
  assert loaded.to_dict() == config.to_dict()
  assert loaded.is_locked
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 0
  for text in ('{"seed": ', '5', '"seed"', '{"train": 5}', '{"version": []}'):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match=r'config.json is not a config'):
      config_lib.load(str(tmp_path))


def test_the_trajectory_of_a_workdir_may_not_change(tmp_path):
  config_lib.save(mnist5k.get_config(), str(tmp_path))
  config = mnist5k.get_config()
  config.update_from_flattened_dict({
      'train.num_steps': 9, 'train.log_every_steps': 9, 'jit_compile': False,
      'distribute.strategy': 'mirrored', 'data.data_dir': '/elsewhere',
      'sample.rho': 9.0, 'sample.steps': 9,
  })  # fmt: skip
  assert config_lib.continued(config, str(tmp_path)).train.num_steps == 9
  config.update_from_flattened_dict({
      'seed': 1, 'train.batch_size': 16, 'ema.decays': (0.9,),
  })  # fmt: skip
  with pytest.raises(UserError) as error:
    config_lib.continued(config, str(tmp_path))
  message = str(error.value)
  assert 'ema.decays (0.995,) -> (0.9,)' in message
  assert 'seed 0 -> 1' in message
  assert 'train.batch_size 64 -> 16' in message
  assert 'jit' not in message


@pytest.mark.parametrize('given', [None, False, True])
@pytest.mark.parametrize('pays', [False, True])
def test_xla_is_used_where_it_pays_unless_told(given, pays, monkeypatch):
  monkeypatch.setattr(
      build.devices, 'pays_to_compile', lambda strategy: pays
  )
  config = default.get_config().lock()
  config.jit_compile = given
  expected = pays if given is None else given
  assert build.jit_compile(config, strategy=None) is expected


def test_a_config_is_rebuilt_as_what_it_was():
  config = config_dict.ConfigDict(mnist5k.get_config().to_dict())
  assert build.make_process(config).prediction == 'v'
