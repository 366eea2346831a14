"""Draws images from a trained model.

  python -m ddpm.sample --workdir=runs/mnist5k --seeds=0-63 --outdir=out

Writes samples.npz, grid.png and manifest.json. The run may still be training.
"""

import io
import json
import os
import re
import time

from absl import flags
from absl import logging
import numpy as np
import tensorflow as tf
import tqdm

import ddpm
from ddpm import checkpoint
from ddpm import preemption
from ddpm import trained
from ddpm import writers
from ddpm.errors import run
from ddpm.errors import UserError
from ddpm.errors import writing

# A grid of more images than this is nothing to look at.
_GRID_IMAGES = 256

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_OUTDIR = flags.DEFINE_string('outdir', None, 'Folder for the images.')
_SEEDS = flags.DEFINE_string(
    'seeds', '0-63', 'One image for each: ranges and lists, as 3,7,20-29.'
)
_SAMPLER = flags.DEFINE_string(
    'sampler',
    None,
    'ancestral, ddim, dpmpp_2m or heun; by default what the config says.',
)
_ETA = flags.DEFINE_float(
    'eta', 0.0, "Noise of ddim: 0 for none, 1 for ancestral's."
)
_GUIDANCE = flags.DEFINE_float(
    'guidance', 1.0, 'Scale of classifier-free guidance; 1 for none.'
)
_LABELS = flags.DEFINE_string(
    'labels',
    'all',
    'Classes: one, a list as 3,1,4 (over and over along the seeds), or all,'
    ' seed mod the number of classes.',
)
_STEPS = flags.DEFINE_integer(
    'steps', None, 'Steps of the sampler; by default what the config says.'
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images drawn at once.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'latest', 'latest, or a step.')
_WEIGHTS = flags.DEFINE_string(
    'weights',
    'ema',
    'ema (the first average of the run); ema:DECAY or power:STD, another that'
    ' it tracks; posthoc:STD, built from all checkpoints up to this one;'
    ' or raw.',
)


def main():
  preemption.StopSignal()  # There is nothing to save: it ends at once.
  started = time.monotonic()
  workdir, outdir = _WORKDIR.value, _OUTDIR.value
  if not workdir or not outdir:
    raise UserError('--workdir and --outdir are needed: the run, and a folder')
  path = checkpoint.find(workdir, _CHECKPOINT.value)
  seeds = parse_seeds(_SEEDS.value)
  if _BATCH_SIZE.value < 1:
    raise UserError(f'--batch_size is {_BATCH_SIZE.value}, expected 1 or more')
  trained_run = trained.Trained(workdir)
  draw = trained_run.sampler(
      _SAMPLER.value,
      _STEPS.value,
      batch_size=min(_BATCH_SIZE.value, len(seeds)),
      guidance=_GUIDANCE.value,
      eta=_ETA.value,
  )
  labels = parse_labels(
      _LABELS.value, seeds, trained_run.config.model.num_classes
  )
  step, weights, params = trained_run.weights(path, _WEIGHTS.value)
  with writing(f'--outdir {outdir}'):
    tf.io.gfile.makedirs(outdir)
  logging.info(
      '%d images from %s (%s), %s, %d steps',
      len(seeds), path, weights, draw.name, draw.steps,
  )  # fmt: skip
  images = []
  # The bar is silent where there is no terminal.
  with tqdm.tqdm(total=len(seeds), unit='image', disable=None) as bar:
    for batch in draw(params, seeds, labels):
      images.append(batch)
      bar.update(len(batch))
  images = np.concatenate(images)

  arrays = {'images': images, 'seeds': seeds}
  if trained_run.config.model.num_classes:
    arrays['labels'] = labels
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  writers.write_file(os.path.join(outdir, 'samples.npz'), file.getvalue())
  grid = writers.grid(images[:_GRID_IMAGES])
  writers.write_png(os.path.join(outdir, 'grid.png'), grid)
  manifest = {
      'checkpoint': path,
      'step': step,
      'weights': weights,
      'sampler': draw.name,
      'steps': draw.steps,
      'eta': _ETA.value,
      'guidance': _GUIDANCE.value,
      'labels': _LABELS.value,
      'seeds': _SEEDS.value,
      'num_images': len(seeds),
      'config': trained_run.config.to_dict(),
      'versions': {
          'ddpm': ddpm.__version__,
          'tensorflow': tf.__version__,
          'numpy': np.__version__,
      },
      'seconds': time.monotonic() - started,
  }
  text = json.dumps(manifest, indent=2) + '\n'
  writers.write_file(os.path.join(outdir, 'manifest.json'), text.encode())
  logging.info('wrote %s', os.path.join(outdir, 'grid.png'))


def parse_seeds(text):
  """The seeds of '0-63' or '3,7,20-29', in that order: int64 array [N].

  Raises:
    UserError: not of that form, or a seed twice.
  """
  seeds = []
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
    first, last = 1, 0
    if match:
      first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < 2**63:
      raise UserError(
          f'--seeds is {text!r}, expected ranges and lists such as 0-63 or'
          ' 3,7,20-29'
      )
    seeds.append(np.arange(first, last + 1, dtype=np.int64))
  seeds = np.concatenate(seeds)
  if len(np.unique(seeds)) < len(seeds):
    raise UserError(f'--seeds {text!r} names a seed twice')
  return seeds


def parse_labels(text, seeds, num_classes):
  """The class of each seed: int32 array [N].

  Raises:
    UserError: not of the form that --labels takes, or not a class.
  """
  if text == 'all':
    return (seeds % max(num_classes, 1)).astype(np.int32)
  if not num_classes:
    raise UserError(f'--labels is {text!r}, but the model has no classes')
  try:
    classes = np.array([int(part) for part in text.split(',')])
  except ValueError as e:
    raise UserError(
        f'--labels is {text!r}, expected all, or classes such as 3 or 3,1,4'
    ) from e
  if classes.min() < 0 or classes.max() >= num_classes:
    raise UserError(
        f'--labels is {text!r}, expected classes from 0 to {num_classes - 1}'
    )
  return np.resize(classes, len(seeds)).astype(np.int32)


if __name__ == '__main__':
  run(main)
