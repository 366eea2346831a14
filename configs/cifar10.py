"""CIFAR-10 as in Ho et al. 2020: 35,746,307 parameters.

  python -m ddpm.main --config=configs/cifar10.py --workdir=runs/cifar10

The paper: TPU v3-8, 10.6 hours for 800,000 steps; FID 3.17 against the training
set from 50,000 ancestral samples (ddpm.evaluate --sampler=ancestral
--num_samples=50000; grids use a faster sampler).
Here: not measured. `--config.optimizer.clip=per_replica` on 8 devices clips
like their code.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.data.name = 'tfds:cifar10'
  return config
