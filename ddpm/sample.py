"""Draws images from a trained model.

  python -m ddpm.sample --workdir=runs/mnist5k --seeds=0-63 --outdir=out

Writes samples.npz, grid.png and manifest.json. The run may still be training.
Rerun to resume; finished images are kept. Several hosts can share a job: give
them the same OUTDIR, and each its own index in TF_CONFIG.
"""

import functools
import hashlib
import re
import time

from absl import flags
from absl import logging
from etils import epy
import numpy as np

import ddpm
from ddpm.runtime import cluster
from ddpm.runtime import program
from ddpm.runtime import words
from ddpm.runtime.errors import UserError
from ddpm.sampling import flags as sampler_flags

# Loaded in main.
with epy.lazy_imports():
  import tensorflow as tf

  from ddpm.run import checkpoint
  from ddpm.run import reader
  from ddpm.runtime import device_map
  from ddpm.runtime import preemption
  from ddpm.runtime import shards
  from ddpm.runtime import strategy as strategy_lib
  from ddpm.sampling import job as job_lib
  from ddpm.sampling import pictures
  from ddpm.sampling import sampler as sampler_lib

# All seeds are held in host memory.
_MOST_SEEDS = 100_000_000

# A device holds all frames of all images.
_MOST_ANIMATED = 64

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string('workdir', None, "The run's folder.")
  flags.DEFINE_string('outdir', None, 'Folder for the images.')
  flags.DEFINE_string(
      'seeds', '0-63', 'One image per seed: ranges and lists as in 3,7,20-29.'
  )
  flags.DEFINE_string(
      'labels',
      'all',
      'Classes: one, a list such as 3,1,4 (repeated along the seeds), or all'
      ' (seed mod the number of classes).',
  )
  flags.DEFINE_integer(
      'batch_size',
      None,
      'Images per device at once; by default 16 on a CPU, 256 elsewhere.',
  )
  flags.DEFINE_string(
      'precision',
      None,
      "float32, mixed_bfloat16 or mixed_float16; by default the config's.",
  )
  flags.DEFINE_string(
      'checkpoint',
      'latest',
      'latest, a step, or a path such as runs/mnist5k/checkpoints/ckpt-600.',
  )
  flags.DEFINE_bool('png', False, 'Also write png/SEED.png.')
  flags.DEFINE_bool(
      'animation', False, 'Also write animation.png, from noise to the grid.'
  )
  flags.DEFINE_string(
      'interpolate',
      None,
      "SEED_A,SEED_B,N: N images from one seed's to the other's, instead of"
      ' --seeds.',
  )
  flags.DEFINE_string(
      'init_image',
      None,
      'Picture to noise and denoise again, once per seed (SDEdit).',
  )
  flags.DEFINE_float(
      'strength',
      0.5,
      'How far to noise --init_image, as a fraction of the process; 1 leaves'
      ' nothing of the picture.',
  )
  flags.DEFINE_string(
      'inpaint',
      None,
      'Picture to repaint inside --mask, once per seed.',
  )
  flags.DEFINE_string(
      'mask', None, 'Picture, white where --inpaint repaints.'
  )
  # The old names still work.
  flags.DEFINE_alias('film', 'animation')
  flags.DEFINE_alias('denoise_from', 'init_image')
  flags.DEFINE_alias('at', 'strength')
  sampler_flags.define_flags()


def main():
  preemption.StopSignal()  # Exits at once: finished images are on disk.
  started = time.monotonic()
  host, hosts = cluster.this_host()
  run = reader.Run(FLAGS.workdir, precision=FLAGS.precision)
  columns = _columns()
  strategy = strategy_lib.local_strategy(
      len(columns['seeds']),
      name=FLAGS.strategy,
      virtual_devices=run.config.distribute.virtual_devices,
      jit_compile=run.config.jit_compile,
  )
  job, details = _make_job(run, columns, strategy, host, hosts)
  with job.locked():
    _draw(job, details, strategy, host, hosts, started)
  if host == 0:
    job.clear()


def _draw(job, details, strategy, host, hosts, started):
  """Draws what is missing; host 0 writes the files."""
  if job.is_finished():
    logging.info('%s is finished: there is nothing to draw', FLAGS.outdir)
    if host == 0 and FLAGS.png:
      job.write_pngs()
    return
  job.begin()
  logging.info(
      '%d images from %s (%s), %s, %d steps, %d replicas, host %d of %d',
      job.total, details['checkpoint'], details['weights'],
      job.identity['sampler'], job.identity['steps'],
      strategy.num_replicas_in_sync, host, hosts,
  )  # fmt: skip
  job.draw()
  if host:
    logging.info('host %d is done; host 0 writes %s', host, FLAGS.outdir)
    return
  job.wait()
  job.assemble()
  if FLAGS.png:
    job.write_pngs()
  job.finish(details | {'seconds': time.monotonic() - started})
  logging.info('wrote %s', FLAGS.outdir)


def _columns():
  """Columns of the job: seeds [N], or pairs [N, 2] and fractions [N]."""
  if FLAGS.interpolate:
    return parse_interpolation(FLAGS.interpolate)
  return {'seeds': parse_seeds(FLAGS.seeds)}


def _make_job(run, columns, strategy, host, hosts):
  """The job that the flags describe, and more fields for its manifest."""
  seeds = columns['seeds'].reshape(len(columns['seeds']), -1)[:, 0]
  if FLAGS.animation and len(seeds) > _MOST_ANIMATED:
    raise UserError(
        f'--animation takes at most {_MOST_ANIMATED} images, got'
        f' {len(seeds)}: use fewer seeds'
    )
  labels = parse_labels(FLAGS.labels, seeds, run.config.model.num_classes)
  if labels is not None:
    columns = columns | {'labels': labels}
  picture, mask, pictured = _pictures(run)
  settings = sampler_flags.settings()
  if FLAGS.interpolate and settings['eta'] is None:
    settings['eta'] = 0.0  # Only initial noise is interpolated.
  sampler = sampler_lib.for_run(
      run,
      **settings,
      batch_size=device_map.batch_size(
          strategy, min(len(seeds), shards.ROWS), most=FLAGS.batch_size
      ),
      strategy=strategy,
      init_image=picture,
      mask=mask,
      strength=FLAGS.strength if FLAGS.init_image else 1.0,
      animation=FLAGS.animation,
  )
  if FLAGS.interpolate and sampler.is_noisy:
    raise UserError(
        '--interpolate needs a sampler that adds no noise, but got'
        f' {sampler.spec.sampler} with eta {sampler.spec.eta}: use'
        ' --sampler=dpmpp_2m'
    )
  # Last, as a run in progress may remove it soon.
  path = checkpoint.find(FLAGS.workdir, FLAGS.checkpoint)
  step, weights, params = run.weights(path, FLAGS.weights)
  job = job_lib.Job(
      FLAGS.outdir,
      functools.partial(sampler, params),
      columns,
      identity={
          'weights_digest': hashlib.sha256(params).hexdigest()[:16],
          'sampler': sampler.spec.sampler,
          'steps': sampler.spec.steps,
          'eta': sampler.spec.eta,
          'sampler_digest': sampler.digest,
          'guidance': sampler.spec.guidance,
          'labels': FLAGS.labels,
          'seeds': None if FLAGS.interpolate else FLAGS.seeds,
          'precision': run.precision,
          'animation': FLAGS.animation,
          'interpolate': FLAGS.interpolate,
      } | pictured,
      given=picture,
      grid_columns=len(seeds) if FLAGS.interpolate else None,
      host=host,
      hosts=hosts,
  )
  details = {
      'checkpoint': path,
      'step': step,
      'weights': weights,
      'num_images': len(seeds),
      'config': run.config.to_dict(),
      'versions': {
          'ddpm': ddpm.__version__,
          'tensorflow': tf.__version__,
          'numpy': np.__version__,
      },
      'hosts': hosts,
      'devices': list(strategy.extended.worker_devices),
  }
  return job, details


def check_flags():
  """Raises UserError if flags are out of range or do not fit together."""
  if not FLAGS.workdir or not FLAGS.outdir:
    raise UserError(
        '--workdir or --outdir is missing: pass the run and an output folder'
    )
  sampler_flags.check_flags()
  if FLAGS.batch_size is not None and FLAGS.batch_size < 1:
    raise UserError(f'--batch_size is {FLAGS.batch_size}, expected 1 or more')
  modes = [
      name
      for name in ('interpolate', 'init_image', 'inpaint')
      if FLAGS[name].value
  ]
  if len(modes) > 1:
    raise UserError(f'expected one of --{" and --".join(modes)}')
  if FLAGS.interpolate and FLAGS['seeds'].present:
    raise UserError('--interpolate names its seeds: leave out --seeds')
  if FLAGS['strength'].present and not FLAGS.init_image:
    raise UserError('--strength needs --init_image, which is missing')
  if not 0.0 < FLAGS.strength <= 1.0:
    raise UserError(
        f'--strength is {FLAGS.strength}, expected more than 0 and at most 1'
    )
  if bool(FLAGS.inpaint) != bool(FLAGS.mask):
    raise UserError(
        '--inpaint and --mask go together: pass a picture and a mask of the'
        ' same size, white where to repaint'
    )


def _pictures(run):
  """Reads the pictures of --init_image, --inpaint and --mask.

  Returns:
    Picture, uint8 [H, W, C] or None; mask, bool [H, W, 1] or None; dict of
    fields for the job's identity.
  """
  path = FLAGS.init_image or FLAGS.inpaint
  if not path:
    return None, None, {}
  shape = run.model.image_shape
  rule = run.config.data.resize
  picture, mask = pictures.read(path, shape, rule), None
  fields = {'init_image': path, 'strength': FLAGS.strength}
  if FLAGS.inpaint:
    mask = pictures.read_mask(FLAGS.mask, path, shape, rule)
    fields = {'inpaint': path, 'mask': FLAGS.mask}
  digest = hashlib.sha256(picture)
  if mask is not None:
    digest.update(mask)
  return picture, mask, fields | {'pictures_digest': digest.hexdigest()[:16]}


def parse_interpolation(text):
  """Parses 'SEED_A,SEED_B,N'.

  Returns:
    Dict of seeds, int64 [N, 2], and fractions, float32 [N]: 0 is the first
    seed's noise, 1 the second's.

  Raises:
    UserError: the text is malformed.
  """
  match = re.fullmatch(r'(\d{1,19}),(\d{1,19}),(\d{1,4})', text)
  if match:
    first, second, number = map(int, match.groups())
  if not match or max(first, second) >= 2**63 or first == second or number < 2:
    raise UserError(
        f'--interpolate is {text!r}, expected two seeds and a number of images,'
        ' such as 3,7,10'
    )
  return {
      'seeds': np.tile(np.array([first, second], np.int64), (number, 1)),
      'fractions': np.linspace(0.0, 1.0, number, dtype=np.float32),
  }


def parse_seeds(text):
  """Parses seeds such as '0-63' or '3,7,20-29': int64 array [N], in order.

  Raises:
    UserError: the text is malformed, or a seed is repeated.
  """
  shown = words.shortened(text)
  ranges = []
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\d{1,19})(?:-(\d{1,19}))?\s*', part)
    first, last = 1, 0
    if match:
      first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < 2**63:
      raise UserError(
          f'--seeds is {shown}, expected ranges and lists such as 0-63 or'
          ' 3,7,20-29'
      )
    ranges.append((first, last - first + 1))
  number = sum(length for _, length in ranges)
  if number > _MOST_SEEDS:
    raise UserError(
        f'--seeds is {shown}, {number} seeds, expected at most {_MOST_SEEDS}'
    )
  seeds = np.concatenate(
      [np.arange(length, dtype=np.int64) + first for first, length in ranges]
  )
  if len(np.unique(seeds)) < len(seeds):
    raise UserError(f'--seeds is {shown}, expected each seed once')
  return seeds


def parse_labels(text, seeds, num_classes):
  """The class of each seed: int32 array [N], or None without classes.

  Raises:
    UserError: the text is malformed, or a class is out of range.
  """
  shown = words.shortened(text)
  if text == 'all':
    return (seeds % num_classes).astype(np.int32) if num_classes else None
  if not num_classes:
    raise UserError(f'--labels is {shown}, but the model has no classes')
  try:
    classes = np.array([int(part) for part in text.split(',')])
  except ValueError as e:
    raise UserError(
        f'--labels is {shown}, expected all, or classes such as 3 or 3,1,4'
    ) from e
  if classes.min() < 0 or classes.max() >= num_classes:
    raise UserError(
        f'--labels is {shown}, expected classes from 0 to {num_classes - 1}'
    )
  return np.resize(classes, len(seeds)).astype(np.int32)


if __name__ == '__main__':
  program.start(main, define_flags, check_flags)
