"""ImageNet at 64 x 64 as in Nichol and Dhariwal 2021, "Improved DDPM".

  python -m ddpm.main --config=configs/imagenet64.py --workdir=runs/imagenet64
  python -m ddpm.main --config=configs/imagenet64.py:vlb --workdir=runs/vlb64

Unconditional, with the hybrid loss or on the bound; 1,500,000 steps of 128
images, as in the paper. 1,281,167 images, which take 14.7 GiB in the cache
folder, downsampled by a box filter as in Chrabaszcz et al. 2017; the paper's
were made from the originals by other means, so scores differ.
Here: not measured.
"""

from configs import cifar10_iddpm


def get_config(loss='hybrid'):
  config = cifar10_iddpm.get_config(loss)

  config.data.name = 'tfds:imagenet_resized/64x64'
  config.data.image_size = 64

  config.model.channel_multipliers = (1, 2, 3, 4)
  config.model.dropout = 0.0

  config.train.num_steps = 1_500_000

  return config
