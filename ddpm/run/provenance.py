"""What a run is trained on: WORKDIR/data.json."""

import json
import os

import tensorflow as tf

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


def _path(workdir):
  return os.path.join(workdir, 'data.json')
