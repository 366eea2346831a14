"""Makes distances.npz: what others' code says of random features.

It takes pytorch-fid 0.3.0, prdc 0.2, torchmetrics 1.9.0 and torch-fidelity
0.4.0, which the tests do not:

    PYTHONPATH=tests python -m oracles.distances
"""

from importlib import metadata
import pathlib

import numpy as np

# Real rows, fake rows, dimensions; rows of a block of the kernel distance.
CASES = {'many': (1500, 1200, 64, 400), 'few': (80, 60, 128, 60)}
SPLITS = 7
FILE = pathlib.Path(__file__).with_suffix('.npz')

_PACKAGES = (
    'numpy', 'scipy', 'scikit-learn', 'torch', 'pytorch-fid', 'prdc',
    'torchmetrics', 'torch-fidelity',
)  # fmt: skip


def random_features(case):
  """Correlated features, some of them 0: (real, fake), float32 [N, D]."""
  num_real, num_fake, dimensions, _ = CASES[case]
  generator = np.random.Generator(np.random.PCG64(1))
  mixing = generator.standard_normal([16, dimensions]) / 4

  def draw(rows, scale, shift):
    z = generator.standard_normal([rows, 16]) * scale + shift
    noise = 0.3 * generator.standard_normal([rows, dimensions])
    return np.maximum(z @ mixing + noise + 0.5, 0).astype(np.float32)

  return draw(num_real, 1.0, 0.0), draw(num_fake, 0.9, 0.1)


def random_logits():
  """Logits of 20 classes, float64 [1203, 20], of which no part is even."""
  generator = np.random.Generator(np.random.PCG64(2))
  return 3 * generator.standard_normal([1203, 20])


def main():
  # Here, since the tests import this file too.
  import prdc
  from pytorch_fid import fid_score
  import torch
  from torch_fidelity import metric_isc
  from torch_fidelity import metric_kid
  from torchmetrics.image import kid

  outputs = {
      'versions': np.array([f'{p} {metadata.version(p)}' for p in _PACKAGES])
  }
  for case, (num_real, num_fake, _, block) in CASES.items():
    real, fake = (x.astype(np.float64) for x in random_features(case))
    outputs[f'{case}_fd'] = fid_score.calculate_frechet_distance(
        real.mean(axis=0), np.cov(real, rowvar=False),
        fake.mean(axis=0), np.cov(fake, rowvar=False),
    )  # fmt: skip
    values = [
        kid.poly_mmd(
            torch.from_numpy(real[i : i + block]),
            torch.from_numpy(fake[i : i + block]),
        ).item()
        for i in range(0, min(num_real, num_fake) - block + 1, block)
    ]
    outputs[f'{case}_kid'] = np.array(values)
    rows = min(num_real, num_fake, 1000)
    outputs[f'{case}_kid_of_one_block'] = metric_kid.kernel_mmd(
        real[:rows], fake[:rows]
    )
    for k in (3, 5):
      for name, value in prdc.compute_prdc(real, fake, nearest_k=k).items():
        outputs[f'{case}_{name}_{k}'] = value

  scores = metric_isc.isc_features_to_metric(
      torch.from_numpy(random_logits()), SPLITS, False, 0
  )
  outputs['is_mean'] = scores[metric_isc.KEY_METRIC_ISC_MEAN]
  outputs['is_std'] = scores[metric_isc.KEY_METRIC_ISC_STD]
  for name, value in outputs.items():
    print(name, value)
  np.savez_compressed(FILE, **outputs)


if __name__ == '__main__':
  main()
