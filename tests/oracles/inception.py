"""Makes inception.npz: what pytorch-fid's own network says.

It takes pytorch-fid 0.3.0 and torchvision, of whose functions it replaces the
one that downloads the weights:

    PYTHONPATH=tests python -m oracles.inception
"""

import pathlib

import numpy as np
from oracles import weights
from pytorch_fid import inception
import torch

SIZES = ((32, 32), (400, 310))
FILE = pathlib.Path(__file__).with_suffix('.npz')


def main():
  shapes = {}

  def random_state(*_, **__):
    model = inception._inception_v3(
        num_classes=1008, aux_logits=False, weights=None
    )
    shapes.update({k: v.shape for k, v in model.state_dict().items()})
    return {
        name: torch.from_numpy(array)
        for name, array in weights.random_state(shapes, weights.SEED).items()
    }

  inception.load_state_dict_from_url = random_state
  network = inception.InceptionV3().eval()
  fc = torch.from_numpy(weights.random_state(shapes, weights.SEED)['fc.weight'])

  outputs = {}
  for height, width in SIZES:
    images = weights.random_images(height, width, weights.SEED)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
      features = network(x)[0][:, :, 0, 0]
      logits = features @ fc.T
    outputs[f'features_{height}x{width}'] = features.numpy()
    outputs[f'logits_{height}x{width}'] = logits.numpy()
    print(height, width, features.std(), features.max(), logits.std())
  np.savez_compressed(FILE, **outputs)


if __name__ == '__main__':
  main()
