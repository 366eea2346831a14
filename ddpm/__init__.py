"""Denoising diffusion probabilistic models in TensorFlow.

  import ddpm
  run = ddpm.Run('runs/mnist5k')
  images = run.sample(range(16))  # uint8 [16, 28, 28, 1]

`ddpm.Run` and `ddpm.train` are documented in ddpm/api.
"""

import sys

__version__ = '0.1.0'
__all__ = ['Run', 'train']

# `python -m ddpm.PROGRAM` passes through this file before it imports anything.
# Whoever imports ddpm keeps their own settings.
if sys.argv[0] == '-m':
  from ddpm.runtime import environment

  environment.exit_on_signals()
  environment.prepare()


def __getattr__(name):
  """Starts TensorFlow when `Run` or `train` is asked for, and not before."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from ddpm.runtime import environment

  environment.prepare()
  from ddpm import api

  return getattr(api, name)
