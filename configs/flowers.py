"""Oxford Flowers 102: 8,189 photos at 64 x 64, with their 102 classes.

  python -m ddpm.main --config=configs/flowers.py --workdir=runs/flowers

Settings of configs/folder.py for photos of this size. Not measured.
"""

from configs import folder


def get_config():
  config = folder.make_config(
      image_size=64, channels=3, num_classes=102, images=8189
  )
  config.data.name = 'tfds:oxford_flowers102'
  config.data.split = 'train+validation+test'
  return config
