"""Tells a launch script of the run's progress."""

import contextlib
import os


def report_step(step):
  """Writes a step to the file DDPM_STEP_FILE, if it is set.

  launch/restart.sh gives up where restarts bring no new step.
  """
  if path := os.environ.get('DDPM_STEP_FILE'):
    # Training does not depend on it.
    with contextlib.suppress(OSError), open(path, 'w') as f:
      f.write(f'{step}\n')
