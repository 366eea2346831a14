"""Denoising diffusion probabilistic models in TensorFlow.

  import ddpm
  run = ddpm.Run('runs/mnist5k')
  images = run.sample(range(16))  # uint8 [16, 28, 28, 1]

`ddpm.Run` and `ddpm.train` are documented in ddpm/api.
"""

import importlib.util
import sys

__version__ = '0.1.0'
__all__ = ['Run', 'train']

# `python -m ddpm.PROGRAM` runs this file before the program's own imports. A
# plain `import ddpm` changes no settings.
if sys.argv[0] == '-m':
  if importlib.util.find_spec('tensorflow') is None:
    sys.exit(
        f'ddpm: error: TensorFlow is not installed for {sys.executable}: use'
        " the Python of the environment that has ddpm, such as"
        ' .venv/bin/python'
    )
  from ddpm.runtime import environment

  environment.open_streams()
  environment.exit_on_signals()
  environment.set_variables()


def __getattr__(name):
  """Imports TensorFlow on the first use of `Run` or `train`."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from ddpm.runtime import environment

  environment.import_tensorflow()
  from ddpm import api

  return getattr(api, name)
