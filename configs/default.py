"""All settings, with the values of Ho et al. 2020 for CIFAR-10.

They are defined in ddpm/run/defaults.py, which also supplies settings that old
runs lack. Do not run this file: the other files here override what differs, and
start with their command, hardware, time and result.
"""

from ddpm.run.defaults import get_config

__all__ = ['get_config']
