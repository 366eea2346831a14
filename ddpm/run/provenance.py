"""What a run is trained on: its data, in WORKDIR/data.json; its software."""

import json
import os
import pathlib
import platform
import subprocess

import keras
import numpy as np
import tensorflow as tf

import ddpm
from ddpm.runtime import files
from ddpm.runtime import strict_json
from ddpm.runtime.errors import UserError


def check_same_data(workdir, *, name, images, digest):
  """Checks that a run goes on with the data that it began with.

  Args:
    workdir: the run's folder.
    name: of the data set.
    images: number of its images.
    digest: hash of its images and labels, as they are trained on.

  Raises:
    UserError: they are others.
  """
  path = _path(workdir)
  if not tf.io.gfile.exists(path):
    return
  try:
    with tf.io.gfile.GFile(path) as f:
      before = json.loads(f.read())
    expected = before['name'], before['images'], before['digest']
  except (ValueError, TypeError, KeyError) as e:
    raise UserError(
        f'{path} cannot be read ({e}): remove it if the data is what the run'
        ' began with'
    ) from e
  if digest != expected[2]:
    count = f'{expected[1]:,}'
    now = f'now {images:,}' if images != expected[1] else 'now other ones'
    raise UserError(
        f'{workdir} was trained on {count} images of {expected[0]}, but {name}'
        f' has {now}: bring back those, or use another workdir'
    )


def write(workdir, *, name, images, digest):
  """Writes WORKDIR/data.json; arguments as above."""
  facts = {'name': name, 'images': images, 'digest': digest}
  text = strict_json.dumps(facts, indent=2) + '\n'
  files.write_file(_path(workdir), text.encode())


def software():
  """Versions of what computes a run, and its git commit where there is one."""
  return {
      'ddpm': ddpm.__version__,
      'commit': _commit(),
      'tensorflow': tf.__version__,
      'keras': keras.__version__,
      'numpy': np.__version__,
      'python': platform.python_version(),
      'platform': platform.platform(),
  }


def _commit():
  """The checkout's commit, with '-dirty' if files differ; None without git."""
  checkout = pathlib.Path(ddpm.__file__).parent.parent
  # An installed copy may lie in another project's checkout.
  if not (checkout / '.git').exists():
    return None
  try:
    return subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
        cwd=checkout, capture_output=True, text=True, check=True, timeout=10,
    ).stdout.strip()  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return None


def _path(workdir):
  return os.path.join(workdir, 'data.json')
