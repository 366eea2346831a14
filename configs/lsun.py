"""LSUN at 256 x 256 as in Ho et al. 2020: 113,673,219 parameters.

  python -m ddpm.main --config=configs/lsun.py --workdir=runs/church
  python -m ddpm.main --config=configs/lsun.py:bedroom --workdir=runs/bedroom
  python -m ddpm.main --config=configs/lsun.py:cat --workdir=runs/cat

Church (the default) has 126,227 images, bedroom 3,033,042, cat 1,657,266. They
take 23, 555 and 303 GiB in the cache folder (XDG_CACHE_HOME) of every host, and
are read from there: give it a fast disk, or use a part of them:
--config.data.split='train[:10%]'. Or write them to smaller files once, for all
hosts: python -m ddpm.data prepare --data=tfds:lsun/bedroom --image_size=256
--encoding=jpeg --out=DIR, and train with --config.data.name=prepared:DIR.

The paper: TPU v3-8, 2.2 steps/s, so 152, 303 and 227 hours for 1,200,000,
2,400,000 and 1,800,000 steps; FID 7.89, 6.36 and 19.75 from 50,000 ancestral
samples (ddpm.evaluate --sampler=ancestral --num_samples=50000).
Here: not measured. If memory is short: --config.train.remat, or
--config.train.accumulation_steps=2.
"""

from absl import flags

from configs import celebahq256

# TFDS name and number of steps.
_SETS = {
    'church': ('church_outdoor', 1_200_000),
    'bedroom': ('bedroom', 2_400_000),
    'cat': ('cat', 1_800_000),
}


def get_config(name='church'):
  if name not in _SETS:
    expected = ', '.join(_SETS)
    raise flags.Error(f'LSUN {name!r} is unknown, expected one of: {expected}')
  config = celebahq256.get_config()
  data_set, config.train.num_steps = _SETS[name]
  config.data.name = f'tfds:lsun/{data_set}'
  # Of Ho's data sets only cat is not mirrored.
  config.data.random_flip = name != 'cat'
  return config
