"""Fashion-MNIST: 60,000 pictures of clothes, from tensorflow-datasets.

  python -m ddpm.main --config=configs/fashion_mnist.py --workdir=runs/fashion

Settings of configs/mnist.py. Not measured.
"""

from configs import mnist


def get_config():
  config = mnist.get_config()
  config.data.name = 'tfds:fashion_mnist'
  return config
