"""CIFAR-10 as in Karras et al. 2022, "EDM": DDPM++ with preconditioning.

  python -m ddpm.main --config=configs/cifar10_edm.py --workdir=runs/edm
  python -m ddpm.main --config=configs/cifar10_edm.py:conditional --workdir=DIR

The paper: FID 1.97, and 1.79 with classes, from 18 steps of Heun's method, as
set here. That is with non-leaky augmentation, which is not implemented here;
with flips alone the paper's own scores are worse.

200 million images, 390,625 steps of 512; the paper: 2 days on 8 V100 GPUs.
Here: not measured.
"""

from absl import flags

from configs import default

_IMAGES = 512  # Per step.


def get_config(variant='unconditional'):
  if variant not in ('unconditional', 'conditional'):
    raise flags.Error(
        f'variant is {variant!r}, expected unconditional or conditional'
    )
  config = default.get_config()

  config.data.name = 'tfds:cifar10'

  config.model.channel_multipliers = (2, 2, 2)
  config.model.num_res_blocks = 4
  config.model.dropout = 0.13
  config.model.variant = 'ddpmpp'
  config.model.resample = 'block'
  config.model.init = 'edm'
  if variant == 'conditional':
    config.model.num_classes = 10

  config.diffusion.schedule = 'edm'
  config.diffusion.prediction = 'edm'
  config.diffusion.timesteps = 'lognormal'
  config.diffusion.variance = 'fixedsmall'

  config.optimizer.learning_rate = 1e-3
  # 10 million images.
  config.optimizer.warmup_steps = 10_000_000 // _IMAGES
  config.optimizer.clip_norm = 0.0

  # A half-life of 0.5 million images.
  config.ema.decays = (0.5 ** (_IMAGES / 500_000),)
  config.ema.rampup_ratio = 0.05

  config.train.batch_size = _IMAGES
  config.train.num_steps = 200_000_000 // _IMAGES

  config.sample.sampler = 'heun'
  config.sample.steps = 18

  return config
