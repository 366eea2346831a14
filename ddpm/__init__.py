"""Denoising diffusion probabilistic models in TensorFlow."""

import sys

__version__ = '0.1.0'

# `python -m ddpm.PROGRAM` passes through this file before it imports anything.
# Whoever imports ddpm keeps their own settings.
if sys.argv[0] == '-m':
  from ddpm.runtime import environment

  environment.exit_on_signals()
  environment.prepare()
