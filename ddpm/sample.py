"""Draws images from a trained model.

  python -m ddpm.sample --workdir=runs/mnist5k --seeds=0-63 --outdir=out

Writes samples.npz, grid.png and manifest.json. The run may still be training.
The same command goes on where it was killed. Several hosts that share OUT draw
together, each with its own number in TF_CONFIG.
"""

import functools
import hashlib
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
from ddpm import parallel
from ddpm import parts
from ddpm import preemption
from ddpm import trained
from ddpm import writers
from ddpm.errors import run
from ddpm.errors import UserError
from ddpm.errors import writing

# A grid of more images than this is nothing to look at.
_GRID_IMAGES = 256

# What a machine has memory to list.
_MOST_SEEDS = 100_000_000

_LOG_SECONDS = 10

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
_BATCH_SIZE = flags.DEFINE_integer(
    'batch_size',
    None,
    'Images drawn at once on each device; by default as many as it has use'
    ' for.',
)
_PRECISION = flags.DEFINE_string(
    'precision',
    None,
    'float32, mixed_bfloat16 or mixed_float16; by default what the config'
    ' says.',
)
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint',
    'latest',
    'latest, a step, or a path such as runs/mnist5k/checkpoints/ckpt-600.',
)
_PNG = flags.DEFINE_bool('png', False, 'One file an image, too: png/SEED.png.')
_WEIGHTS = flags.DEFINE_string(
    'weights',
    'ema',
    'ema (the first average of the run); ema:DECAY or power:STD, another that'
    ' it tracks; posthoc:STD, built from all checkpoints up to this one;'
    ' or raw.',
)


def main():
  preemption.StopSignal()  # What was drawn is on disk: it ends at once.
  started = time.monotonic()
  if not _WORKDIR.value or not _OUTDIR.value:
    raise UserError('--workdir and --outdir are needed: the run, and a folder')
  host, hosts = this_host()
  model = trained.Trained(_WORKDIR.value, precision=_PRECISION.value)
  strategy = parallel.local_strategy(model.config.distribute.virtual_devices)
  job, details = _make_job(model, strategy, host, hosts)
  if job.is_finished():
    logging.info('%s is finished: there is nothing to draw', _OUTDIR.value)
    if host == 0:
      job.clear()
      if _PNG.value:
        job.write_pngs()
    return
  job.begin()
  logging.info(
      '%d images from %s (%s), %s, %d steps, %d replicas, host %d of %d',
      len(job.seeds), details['checkpoint'], details['weights'],
      job.identity['sampler'], job.identity['steps'],
      strategy.num_replicas_in_sync, host, hosts,
  )  # fmt: skip
  job.draw()
  if host:
    logging.info('host %d is done; host 0 writes %s', host, _OUTDIR.value)
    return
  job.wait()
  job.assemble()
  if _PNG.value:
    job.write_pngs()
  job.finish(details | {'seconds': time.monotonic() - started})
  job.clear()
  logging.info('wrote %s', _OUTDIR.value)


def _make_job(model, strategy, host, hosts):
  """The job that the flags describe, and what else its manifest tells."""
  seeds = parse_seeds(_SEEDS.value)
  labels = parse_labels(_LABELS.value, seeds, model.config.model.num_classes)
  if _BATCH_SIZE.value is not None and _BATCH_SIZE.value < 1:
    raise UserError(f'--batch_size is {_BATCH_SIZE.value}, expected 1 or more')
  path = checkpoint.find(_WORKDIR.value, _CHECKPOINT.value)
  sampler = model.sampler(
      _SAMPLER.value,
      _STEPS.value,
      batch_size=parallel.batch_size(
          strategy, min(len(seeds), parts.ROWS), most=_BATCH_SIZE.value
      ),
      guidance=_GUIDANCE.value,
      eta=_ETA.value,
      strategy=strategy,
  )
  step, weights, params = model.weights(path, _WEIGHTS.value)
  job = Job(
      _OUTDIR.value,
      functools.partial(sampler, params),
      seeds,
      labels,
      identity={
          'weights_digest': hashlib.sha256(params).hexdigest()[:16],
          'sampler': sampler.name,
          'steps': sampler.steps,
          'eta': _ETA.value,
          'guidance': _GUIDANCE.value,
          'labels': _LABELS.value,
          'seeds': _SEEDS.value,
          'precision': model.precision,
      },
      labelled=model.config.model.num_classes > 0,
      host=host,
      hosts=hosts,
  )
  details = {
      'checkpoint': path,
      'step': step,
      'weights': weights,
      'num_images': len(seeds),
      'config': model.config.to_dict(),
      'versions': {
          'ddpm': ddpm.__version__,
          'tensorflow': tf.__version__,
          'numpy': np.__version__,
      },
      'hosts': hosts,
      'devices': list(strategy.extended.worker_devices),
  }
  return job, details


class Job:
  """Images of some seeds, drawn into a folder by one host or by several.

  While it is worked on OUTDIR/parts holds what is drawn, and the job's identity
  as each host wrote it; host k draws every `hosts`-th part, from the k-th on.
  No host speaks to another.

  Attributes:
    seeds: int64 [N].
    identity: dict, all that the images depend on.

  Args:
    outdir: the folder, which all hosts share.
    draw: function (seeds, labels) -> batches, uint8 [n, H, W, C].
    seeds, labels: of the images, [N].
    identity: see there.
    labelled: whether the labels are of classes, and to be written.
    host, hosts: number of this host, and how many there are.

  Raises:
    UserError: the folder holds another job, begun or finished.
  """

  def __init__(
      self, outdir, draw, seeds, labels, *, identity, labelled=False, host=0,
      hosts=1,
  ):  # fmt: skip
    self.seeds = seeds
    self.identity = identity
    self._outdir = outdir
    self._draw_batches = draw
    self._labels = labels
    self._labelled = labelled
    self._host = host
    self._hosts = hosts
    self._directory = os.path.join(outdir, 'parts')
    self._parts = parts.Parts(
        self._directory, self._draw_part, total=len(seeds), what='images'
    )
    self._progress = None
    begun = tf.io.gfile.glob(os.path.join(self._directory, 'job_*.json'))
    for path in [self._path('manifest.json'), *begun]:
      self._check_same(path)

  def is_finished(self):
    """Whether all is written already."""
    return all(
        tf.io.gfile.exists(self._path(name))
        for name in ('samples.npz', 'manifest.json')
    )

  def begin(self):
    """Writes down what the job is, so that another one is told from it."""
    with writing(f'--outdir {self._outdir}'):
      tf.io.gfile.makedirs(self._directory)
    self._write_json(f'parts/job_{self._host}.json', self.identity)

  def draw(self):
    """Draws this host's share of the images that are not there yet."""
    share = self._parts.files()[self._host :: self._hosts]
    missing = sorted(set(share) & set(self._parts.missing()))
    total, left = _rows(share), _rows(missing)
    if left < total:
      logging.info('%d of %d images are drawn already', total - left, total)
    self._progress = _Progress(total - left, total)
    for first, last in missing:
      self._parts.make(first, last)
    self._progress.close()

  def wait(self):
    """Waits until the other hosts have drawn their shares."""
    while missing := self._parts.missing():
      of = {first // parts.ROWS % self._hosts for first, _ in missing}
      logging.log_every_n_seconds(
          logging.INFO, 'waiting for %d images of host %s', _LOG_SECONDS,
          _rows(missing), ', '.join(map(str, sorted(of))),
      )  # fmt: skip
      time.sleep(1)

  def assemble(self):
    """Writes samples.npz and grid.png from the parts."""
    number = len(self.seeds)
    columns = {
        'images': self._parts.column('images', 0, number),
        'seeds': [self.seeds],
    }
    if self._labelled:
      columns['labels'] = [self._labels]
    parts.write_blocks(self._path('samples.npz'), columns, rows=number)
    first = self._parts.column('images', 0, min(number, _GRID_IMAGES))
    grid = writers.grid(np.concatenate(list(first)))
    writers.write_png(self._path('grid.png'), grid)

  def write_pngs(self):
    """Writes a file an image, from samples.npz."""
    seeds = iter(self.seeds)
    for block in parts.read_blocks(self._path('samples.npz'), 'images'):
      for image in block:
        writers.write_png(self._path(f'png/{next(seeds):08d}.png'), image)

  def finish(self, details):
    """Writes manifest.json, the sign that all is there."""
    self._write_json('manifest.json', self.identity | details)

  def clear(self):
    """Removes the parts, which samples.npz has."""
    if tf.io.gfile.isdir(self._directory):
      with writing(self._directory):
        tf.io.gfile.rmtree(self._directory)

  def _draw_part(self, first, last):
    batches = []
    for batch in self._draw_batches(
        self.seeds[first:last], self._labels[first:last]
    ):
      batches.append(batch)
      self._progress.add(len(batch))
    return {'images': np.concatenate(batches)}

  def _check_same(self, path):
    """Raises UserError if what a file tells of is another job."""
    if not tf.io.gfile.exists(path):
      return
    try:
      with tf.io.gfile.GFile(path) as f:
        theirs = json.loads(f.read())
      differ = [
          f'{name} {theirs.get(name)} -> {value}'
          for name, value in self.identity.items()
          if theirs.get(name) != value
      ]
    except (ValueError, AttributeError) as e:
      raise UserError(f'{path} is damaged: use another --outdir') from e
    if differ:
      raise UserError(
          f'--outdir {self._outdir} holds another job: {", ".join(differ)}; use'
          ' another --outdir'
      )

  def _path(self, name):
    return os.path.join(self._outdir, name)

  def _write_json(self, name, fields):
    text = json.dumps(fields, indent=2) + '\n'
    writers.write_file(self._path(name), text.encode())


class _Progress:
  """How far it is: a bar on a terminal, else a line now and then."""

  def __init__(self, done, total):
    self._done = done
    self._total = total
    # When the first batch was done, which takes compiling, and where it was.
    self._start = None
    # None: silent where there is no terminal.
    self._bar = tqdm.tqdm(
        total=total, initial=done, unit='image', disable=None,
        dynamic_ncols=True,
    )  # fmt: skip

  def add(self, number):
    self._done += number
    self._bar.update(number)
    now = time.monotonic()
    if self._start is None:
      self._start = now, self._done
    elif self._bar.disable:
      started, first = self._start
      rate = (self._done - first) / (now - started)
      logging.log_every_n_seconds(
          logging.INFO, '%d of %d images, %.1f images/s, %s left', _LOG_SECONDS,
          self._done, self._total, rate,
          duration((self._total - self._done) / rate),
      )  # fmt: skip

  def close(self):
    self._bar.close()


def duration(seconds):
  """A time in words: '40 s', '12 min', '1 h 13 min'."""
  if round(seconds) < 60:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def this_host():
  """Number of this host, and of how many, as TF_CONFIG says; else 0, 1.

  TF_CONFIG is taken out of the environment: TensorFlow would have the hosts
  meet, and they need not.

  Raises:
    UserError: TF_CONFIG does not say it.
  """
  text = os.environ.pop('TF_CONFIG', None)
  if not text:
    return 0, 1
  try:
    config = json.loads(text)
    (addresses,) = config['cluster'].values()
    host, hosts = config['task']['index'], len(addresses)
    if host not in range(hosts):
      raise ValueError(host)
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
        f'TF_CONFIG is {text}, expected such as {{"cluster": {{"worker":'
        ' ["host0", "host1"]}, "task": {"type": "worker", "index": 0}}'
    ) from e
  return host, hosts


def _rows(files):
  return sum(last - first for first, last in files)


def parse_seeds(text):
  """The seeds of '0-63' or '3,7,20-29', in that order: int64 array [N].

  Raises:
    UserError: not of that form, or a seed twice.
  """
  ranges = []
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\d{1,19})(?:-(\d{1,19}))?\s*', part)
    first, last = 1, 0
    if match:
      first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < 2**63:
      raise UserError(
          f'--seeds is {text!r}, expected ranges and lists such as 0-63 or'
          ' 3,7,20-29'
      )
    ranges.append((first, last - first + 1))
  number = sum(length for _, length in ranges)
  if number > _MOST_SEEDS:
    raise UserError(
        f'--seeds {text!r} names {number} seeds, expected at most {_MOST_SEEDS}'
    )
  seeds = np.concatenate(
      [np.arange(length, dtype=np.int64) + first for first, length in ranges]
  )
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
