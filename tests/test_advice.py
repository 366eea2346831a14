"""Settings that work, but hardly as they are meant."""

import importlib

import pytest
from support import ROOT
from support import tiny_config

from configs import folder
from configs import mnist5k
from ddpm.run import advice
from ddpm.run import defaults

# Those that need an argument are variants of folder.py, or not of their own.
_CONFIGS = sorted(
    {path.stem for path in (ROOT / 'configs').glob('*.py')}
    - {'__init__', 'folder', 'workdir'}
)


@pytest.mark.parametrize('name', _CONFIGS)
def test_there_is_none_on_the_configs(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  assert advice.advice(config) == []


@pytest.mark.parametrize('size', [32, 64, 128, 256])
def test_there_is_none_on_a_folders(size):
  config = folder.make_config(
      image_size=size, channels=3, num_classes=0, images=1000
  )
  assert advice.advice(config) == []


def advice_on(**overrides):
  """The sentences on mnist5k with some other settings."""
  config = mnist5k.get_config()
  config.update_from_flattened_dict(overrides)
  return advice.advice(config.lock())


def test_a_learning_rate_of_0():
  (sentence,) = advice_on(**{'train.num_steps': 3000})
  assert 'is 0 from step 1,800 (optimizer.decay_steps) on' in sentence
  assert 'to step 3,000' in sentence and 'decay_steps=3000' in sentence
  for decay in ('constant', 'inverse_sqrt'):
    assert not advice_on(
        **{'train.num_steps': 3000, 'optimizer.decay': decay}
    )


def test_a_warm_up_without_end():
  (sentence,) = advice_on(
      **{'train.num_steps': 600, 'optimizer.warmup_steps': 5000}
  )
  assert 'rises for 5,000 steps' in sentence and 'at step 600' in sentence


def test_an_ema_of_initial_weights():
  short = {'train.num_steps': 600, 'ema.decays': (0.995, 0.9999)}
  (sentence,) = advice_on(**short)
  # 0.9999^600
  assert sentence.startswith(
      'after 600 steps, 94% of the EMA of decay 0.9999 (ema.decays) is the'
  )
  assert not advice_on(**short, **{'ema.rampup_ratio': 0.05})


def test_a_schedule_without_noise():
  config = defaults.get_config()
  config.diffusion.num_timesteps = 100
  config.sample.steps = 25
  (sentence,) = advice.advice(config)
  # prod(1 - beta) is 0.3636 with 100 betas from 1e-4 to 0.02.
  assert 'signal-to-noise ratio is 0.57' in sentence
  config.diffusion.schedule = 'cosine'
  assert advice.advice(config) == []


def test_attention_at_no_height():
  (sentence,) = advice_on(**{'model.attention_resolutions': (7, 16)})
  assert 'at height 16' in sentence and 'are 14, 7 high' in sentence


def test_several():
  config = tiny_config(
      **{'train.num_steps': 1, 'model.attention_resolutions': (28,)}
  )
  assert len(advice.advice(config)) == 3
