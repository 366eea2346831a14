"""Your own images: a folder of files, with a sub-folder per class or without.

  python -m ddpm.data check --data=folder:PATH
  python -m ddpm.main --config=configs/folder.py:PATH --workdir=runs/mine

PATH may also be what `ddpm.data prepare` has written. Takes the size (32, 64,
128 or 256), whether there is color, and the classes from the images; see
`ddpm.data.folder.suggest`. A network of middle size, with the schedule and the
prediction of configs/mnist5k.py. Not tuned: results depend on the images. For a
CPU: --config.data.image_size=32 --config.model.channels=32
"""

import dataclasses
import os

from absl import flags
from etils import epy

from configs import default
from ddpm.runtime import environment
from ddpm.runtime.errors import UserError

with epy.lazy_imports():
  from ddpm.data import folder
  from ddpm.data import tfds

# Channels of each resolution, in `model.channels`, by size.
_MULTIPLIERS = {
    32: (1, 2, 2),
    64: (1, 2, 2, 2),
    128: (1, 1, 2, 2, 2),
    256: (1, 1, 2, 2, 4, 4),
}


def get_config(path=''):
  if not path:
    raise flags.Error(
        '--config: a folder of images is missing, as in'
        ' configs/folder.py:PATH'
    )
  environment.import_tensorflow()
  full = os.path.expanduser(path)
  kind = 'prepared' if tfds.is_in(full) else 'folder'
  try:
    if kind == 'prepared':
      found = tfds.suggest(tfds.builder_in(full), path)
    else:
      found = folder.suggest(folder.list_images(full))
  except UserError as e:
    # ml_collections passes this error through unchanged.
    raise flags.Error(f'--config=configs/folder.py:{path}: {e}') from e

  config = make_config(**dataclasses.asdict(found))
  config.data.name = f'{kind}:{path}'
  return config


def make_config(*, images, image_size, channels, num_classes):
  """The config for images of which this is known, but for their name."""
  config = default.get_config()

  config.data.image_size = image_size

  config.model.image_channels = channels
  config.model.channels = 64
  config.model.channel_multipliers = _MULTIPLIERS[image_size]
  config.model.attention_resolutions = (16, 8)
  config.model.dropout = 0.1 if images < 50_000 else 0.0
  config.model.num_classes = num_classes
  config.model.scale_shift_norm = True

  config.diffusion.schedule = 'cosine'
  config.diffusion.prediction = 'v'

  config.optimizer.warmup_steps = 1000

  # So that short runs have an average, too.
  config.ema.rampup_ratio = 0.05

  config.train.batch_size = 64
  config.train.num_steps = 200_000
  config.train.steps_per_loop = 10
  config.train.log_every_steps = 50
  config.train.checkpoint_every_steps = 1000
  config.train.sample_every_steps = 2000

  return config
