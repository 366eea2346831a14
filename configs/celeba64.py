"""CelebA at 64 x 64, with the settings of Song et al. 2021, "DDIM".

  python -m ddpm.main --config=configs/celeba64.py --workdir=runs/celeba64

162,770 photos; tensorflow-datasets downloads them from Google Drive, which may
refuse. Their code cuts out 128 x 128 pixels around the face, this config the
whole width, so scores differ. To compare, cut the photos likewise, and train
with --config.data.name=folder:PATH.

Their code runs until it is stopped; 500,000 steps are this project's choice.
Here: not measured.
"""

from configs import default


def get_config():
  config = default.get_config()

  config.data.name = 'tfds:celeb_a'
  config.data.image_size = 64

  config.model.channel_multipliers = (1, 2, 2, 2, 4)
  config.model.init = 'torch'

  config.optimizer.warmup_steps = 0

  config.train.num_steps = 500_000

  return config
