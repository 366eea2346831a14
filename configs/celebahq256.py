"""CelebA-HQ at 256 x 256 as in Ho et al. 2020: 113,673,219 parameters.

  python -m ddpm.main --config=configs/celebahq256.py --workdir=runs/celebahq256

tensorflow-datasets needs a manual download of the images (celeb_a_hq/256); they
take 5.5 GiB in the cache folder.

The paper: TPU v3-8, 2.2 steps/s, so 63 hours for 500,000 steps. It shows
samples but no score.
Here: not measured. If memory is short: --config.train.remat, or
--config.train.accumulation_steps=2.
"""

from configs import default


def get_config():
  config = default.get_config()

  config.data.name = 'tfds:celeb_a_hq/256'
  config.data.image_size = 256

  config.model.channel_multipliers = (1, 1, 2, 2, 4, 4)
  config.model.dropout = 0.0

  config.diffusion.variance = 'fixedsmall'

  config.optimizer.learning_rate = 2e-5

  config.train.batch_size = 64
  config.train.num_steps = 500_000

  return config
