"""Weights and images that every machine draws alike, without PyTorch."""

import numpy as np

# Of the fixtures, and of the tests that compare with them.
SEED = 1


def random_state(shapes, seed):
  """A state dict under which activations neither vanish nor explode.

  Args:
    shapes: dict of shapes, by PyTorch's name of the tensor.
    seed: of PCG64.

  Returns:
    Dict of float32 arrays; kernels are He's normals, BatchNorm's parameters
    and averages near those of the identity.
  """
  generator = np.random.Generator(np.random.PCG64(seed))
  state = {}
  for name in sorted(shapes):
    shape = shapes[name]
    if name.endswith('num_batches_tracked'):
      state[name] = np.array(0)
      continue
    x = generator.standard_normal(shape)
    if len(shape) > 1:  # [out, in, ...]
      x *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith('weight'):
      x = 1 + 0.1 * x
    elif name.endswith('running_var'):
      x = np.exp(0.1 * x)
    else:
      x *= 0.1
    state[name] = x.astype(np.float32)
  return state


def random_images(height, width, seed):
  """Two images, uint8 [2, height, width, 3]: waves of colour, and noise."""
  generator = np.random.Generator(np.random.PCG64(seed))
  y = np.arange(height)[:, None, None] / height
  x = np.arange(width)[:, None] / width
  frequencies = generator.uniform(-15, 15, [2, 3])
  waves = np.sin(frequencies[0] * y + frequencies[1] * x)
  noise = generator.uniform(0, 255, [height, width, 3])
  return np.stack([127.5 + 127 * waves, noise]).astype(np.uint8)
