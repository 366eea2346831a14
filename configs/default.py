"""Every knob there is, at the values of Ho et al. 2020 for CIFAR-10.

They stand in ddpm/run/defaults.py, where old runs find the ones that they
lack. Not meant to be run: each other file here overrides only what differs,
and opens with its command, hardware, time and result.
"""

from ddpm.run.defaults import get_config

__all__ = ['get_config']
