"""LSUN Bedroom at 256 x 256 as in Ho et al. 2020: 113,673,219 parameters.

  python -m ddpm.main --config=configs/lsun_bedroom.py --workdir=runs/bedroom

The 3,033,042 images are kept in the host's memory, 555 GiB: on a smaller
machine a part of them, --config.data.split='train[:10%]'.

Hardware of the paper: TPU v3-8, 2.2 steps/s, so 303 hours for 2,400,000
steps. Its result: FID 6.36 from 50,000 ancestral samples
(ddpm.evaluate --sampler=ancestral --num_samples=50000).
Here: not measured. Where memory is short: --config.model.remat, or
--config.train.accumulation_steps=2.
"""

from configs import celebahq256


def get_config():
  config = celebahq256.get_config()
  config.data.name = 'tfds:lsun/bedroom'
  config.train.num_steps = 2_400_000
  return config
