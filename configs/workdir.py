"""A workdir's own config, for example to train on from ddpm.convert's output.

  python -m ddpm.main --config=configs/workdir.py:runs/cat --workdir=runs/cat

Settings that define a run's trajectory are fixed; others may change, such as
--config.train.num_steps=900_000. Hardware, time and result depend on the run.
"""

from absl import flags
from etils import epy

from ddpm.runtime import environment
from ddpm.runtime.errors import UserError

with epy.lazy_imports():
  from ddpm.run import config as config_lib


def get_config(workdir=''):
  environment.import_tensorflow()
  try:
    config = config_lib.load(workdir)
  except UserError as e:
    # ml_collections passes this error through unchanged.
    raise flags.Error(str(e)) from e
  if config is None:
    raise flags.Error(
        f'--config: {workdir!r} has no config.json, expected a workdir, as in'
        ' configs/workdir.py:runs/cat'
    )
  return config
