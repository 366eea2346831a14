"""MNIST, all 60,000 digits, by tensorflow-datasets.

  python -m ddpm.main --config=configs/mnist.py --workdir=runs/mnist

Downloads MNIST where there is a network. The network and the sampler are
those of configs/mnist5k.py. For 2 CPU cores; result: not measured.
"""

from configs import mnist5k


def get_config():
  config = mnist5k.get_config()

  config.data.name = 'tfds:mnist'

  config.optimizer.decay_steps = 6_000

  config.train.num_steps = 6_000
  config.train.checkpoint_every_steps = 500
  config.train.sample_every_steps = 1000

  return config
