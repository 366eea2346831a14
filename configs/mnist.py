"""MNIST, all 60,000 digits, by tensorflow-datasets.

  python -m ddpm.main --config=configs/mnist.py --workdir=runs/mnist

Downloads MNIST where there is a network; --config.data.data_dir names a folder
where tensorflow-datasets has it. The network and the sampler are those of
configs/mnist5k.py.

On 2 cores of an AMD EPYC, 2026-11-24: 101 minutes from start to grid.png with
other work beside it (at its undisturbed 300 images/s it would be 50).
fd_mnist@2000 is 7.12; real digits get 1.22.
"""

from configs import mnist5k


def get_config():
  config = mnist5k.get_config()

  config.data.name = 'tfds:mnist'

  config.optimizer.decay_steps = 14_000

  config.train.num_steps = 14_000
  config.train.checkpoint_every_steps = 1000
  config.train.sample_every_steps = 2000
  # What ddpm.evaluate --every_checkpoint draws a curve through.
  config.train.keep_every_steps = 2000

  return config
