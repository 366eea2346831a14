"""CIFAR-10 as in Nichol and Dhariwal 2021, "Improved DDPM".

  python -m ddpm.main --config=configs/cifar10_iddpm.py --workdir=runs/iddpm
  python -m ddpm.main --config=configs/cifar10_iddpm.py:vlb --workdir=runs/vlb

The first command trains with the hybrid loss, for image quality: FID 3.19 in
the paper (ddpm.evaluate --sampler=ancestral --num_samples=50000; grids use a
faster sampler).
The second trains on the bound with importance sampling, for likelihood: 2.94
bits per dimension in the paper (ddpm.evaluate --metrics=bpd).

500,000 steps of 128 images, as in the paper, which does not state its hardware.
As in its code there is no flip, no clipping and no warm-up.
Here: not measured.
"""

from absl import flags

from configs import default


def get_config(loss='hybrid'):
  if loss not in ('hybrid', 'vlb'):
    raise flags.Error(f'loss is {loss!r}, expected hybrid or vlb')
  config = default.get_config()

  config.data.name = 'tfds:cifar10'
  config.data.random_flip = False

  config.model.num_res_blocks = 3
  config.model.attention_resolutions = (16, 8)
  config.model.num_heads = 4
  config.model.dropout = 0.3
  config.model.norm_epsilon = 1e-5
  config.model.scale_shift_norm = True
  config.model.compat.downsample_padding = 'symmetric'
  config.model.compat.embedding_order = 'cos_sin'
  config.model.compat.embedding_shift = 0
  config.model.init = 'torch'

  config.diffusion.num_timesteps = 4000
  config.diffusion.schedule = 'cosine'
  config.diffusion.rescale_timesteps = True
  config.diffusion.variance = 'learned_range'
  config.diffusion.loss = loss
  if loss == 'vlb':
    config.diffusion.timesteps = 'loss_second_moment'

  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 0
  config.optimizer.clip_norm = 0.0

  config.train.num_steps = 500_000

  return config
