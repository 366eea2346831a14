"""The config that a workdir has: to train on what ddpm.convert made, say.

  python -m ddpm.main --config=configs/workdir.py:runs/cat --workdir=runs/cat

What defines the trajectory of a run is settled there; all else may change, as
with --config.train.num_steps=900_000. Hardware, time and result: the run's.
"""

from absl import flags

from ddpm.run import config as config_lib
from ddpm.runtime.errors import UserError


def get_config(workdir=''):
  try:
    config = config_lib.load(workdir)
  except UserError as e:
    # What ml_collections passes on as it is.
    raise flags.Error(str(e)) from e
  if config is None:
    raise flags.Error(
        f'--config: {workdir!r} has no config.json, expected a run, as in'
        ' configs/workdir.py:runs/cat'
    )
  return config
