"""Scores images: a run's samples, or anybody's.

  python -m ddpm.evaluate --workdir=runs/mnist5k
  python -m ddpm.evaluate --workdir=runs/mnist5k --every_checkpoint
  python -m ddpm.evaluate --samples=out/samples.npz --data=mnist5k

What was drawn is kept, so that the same command goes on where it was stopped.
"""

import hashlib
import json
import os

from absl import flags
from absl import logging
import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.metrics import evaluator
from ddpm.metrics import extractors
from ddpm.metrics import likelihood
from ddpm.metrics import report
from ddpm.metrics import sources
from ddpm.run import checkpoint
from ddpm.run import reader
from ddpm.runtime import device_map
from ddpm.runtime import files
from ddpm.runtime import preemption
from ddpm.runtime import program
from ddpm.runtime import shards
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import UserError
from ddpm.sampling import flags as sampler_flags
from ddpm.sampling import sampler as sampler_lib

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string(
      'workdir', None, 'Folder of the run whose samples are scored.'
  )
  flags.DEFINE_string(
      'samples', None, 'Images to score instead: FILE.npz or a folder.'
  )
  flags.DEFINE_bool(
      'every_checkpoint', False, 'Score all checkpoints of the run.'
  )
  flags.DEFINE_list(
      'metrics',
      'fid,kid,is,prdc,nearest',
      'Some of fid, kid, is, prdc, nearest, bpd (bits per dimension).',
  )
  flags.DEFINE_integer(
      'num_samples',
      None,
      'Images to score; by default 2000 of a run, all of --samples. Papers take'
      ' 50000.',
  )
  flags.DEFINE_string(
      'data',
      None,
      'Real images: mnist5k, tfds:NAME or folder:PATH; by default those of the'
      ' run.',
  )
  flags.DEFINE_string(
      'data_dir', None, 'Where tensorflow-datasets keeps what it prepared.'
  )
  flags.DEFINE_string(
      'split',
      None,
      'train or test: the real images; by default train, and test for bpd.',
  )
  flags.DEFINE_string(
      'features',
      None,
      'mnist (by default, for images of 28 x 28 x 1), inception (for others),'
      ' efficientnet, or savedmodel:DIR.',
  )
  flags.DEFINE_string(
      'inception_weights', None, 'File of --features=inception.'
  )
  flags.DEFINE_string(
      'out', None, "JSON file for the result; of several, the last one's."
  )
  sampler_flags.define_flags()


# Samples of a run that are drawn where no number is asked for.
_RUN_SAMPLES = 2000


def main():
  preemption.StopSignal()  # What was drawn is on disk: it ends at once.
  metrics = _check_flags()
  # Scores are to compare: 10 bits of a GPU's matrix units are too few.
  tf.config.experimental.enable_tensor_float_32_execution(False)
  result = _score_images(metrics) if FLAGS.samples else _score_run(metrics)
  if FLAGS.out:
    text = json.dumps(result, indent=2) + '\n'
    files.write_file(FLAGS.out, text.encode())


def _check_flags():
  """The metrics asked for. Raises UserError if flags do not fit together."""
  if 'TF_CONFIG' in os.environ:
    raise UserError(
        'TF_CONFIG is set, but ddpm.evaluate is for one host: unset it'
    )
  if bool(FLAGS.workdir) == bool(FLAGS.samples):
    raise UserError('one of --workdir and --samples is needed: what to score')
  if FLAGS.samples and not FLAGS.data:
    raise UserError(
        '--data is missing, what --samples are compared with: mnist5k,'
        ' tfds:NAME or folder:PATH'
    )
  if FLAGS.samples and FLAGS.every_checkpoint:
    raise UserError('--every_checkpoint is for a --workdir')
  metrics = set(FLAGS.metrics)
  if not metrics or metrics - set(evaluator.MINIMUM):
    raise UserError(
        f'--metrics is {",".join(FLAGS.metrics)}, expected some of:'
        f' {", ".join(sorted(evaluator.MINIMUM))}'
    )
  if FLAGS.samples and 'bpd' in metrics:
    raise UserError('--metrics=bpd is of a model: it needs --workdir')
  if FLAGS.split not in (None, 'train', 'test'):
    raise UserError(f'--split is {FLAGS.split!r}, expected train or test')
  return metrics


def _check_number(number, metrics):
  least = evaluator.minimum(metrics)
  if number < least:
    raise UserError(
        f'{number} samples are too few: --metrics={",".join(sorted(metrics))}'
        f' needs at least {least}'
    )


def _score_images(metrics):
  """Scores --samples; returns the result."""
  strategy = strategy_lib.local_strategy()
  samples = sources.samples(FLAGS.samples)
  count = FLAGS.num_samples or len(samples)
  _check_number(count, metrics)
  if len(samples) < count:
    raise UserError(
        f'{FLAGS.samples} has {len(samples)} images, expected the {count} of'
        ' --num_samples'
    )
  real = _RealImages(FLAGS.data, FLAGS.data_dir, samples.shape)
  split = FLAGS.split or 'train'
  judge = evaluator.Evaluator(
      metrics,
      _extractor(metrics, samples.shape),
      reference=real.split(split),
      training=real.split('train') if 'nearest' in metrics else None,
      num_samples=count,
      strategy=strategy,
  )
  result = judge.score(samples, FLAGS.samples)
  result['details'] |= {
      'samples': FLAGS.samples,
      'data': FLAGS.data,
      'split': split,
  }
  print(report.table(result))
  return result


def _score_run(metrics):
  """Scores samples of --workdir; returns the last checkpoint's result."""
  workdir, count = FLAGS.workdir, FLAGS.num_samples or _RUN_SAMPLES
  _check_number(count, metrics)
  run_ = reader.Run(workdir)
  config = run_.config
  strategy = strategy_lib.local_strategy(
      count, virtual_devices=config.distribute.virtual_devices
  )
  if FLAGS.every_checkpoint:
    paths = checkpoint.find_all(workdir)
  else:
    paths = [checkpoint.find(workdir, 'latest')]
  batch_size = device_map.batch_size(strategy, shards.ROWS)
  sampler = sampler_lib.for_run(
      run_,
      **sampler_flags.settings(), batch_size=batch_size, strategy=strategy
  )
  name = FLAGS.data or config.data.name
  real = _RealImages(
      name, FLAGS.data_dir or config.data.data_dir, run_.model.image_shape
  )
  split = FLAGS.split or config.data.split
  judge = evaluator.Evaluator(
      metrics,
      _extractor(metrics, run_.model.image_shape),
      reference=real.split(split),
      training=(
          real.split(config.data.split) if 'nearest' in metrics else None
      ),
      num_samples=count,
      strategy=strategy,
  )
  bits = None
  if 'bpd' in metrics:
    if config.diffusion.schedule == 'edm':
      raise UserError(
          '--metrics=bpd is of a process of T steps, which the schedule edm'
          ' does not have'
      )
    bpd_split = FLAGS.split or 'test'
    bits = likelihood.BitsPerDim(
        run_,
        real.split(bpd_split),
        num_images=count,
        strategy=strategy,
        batch_size=batch_size,
    )
  logging.info(
      '%d samples of a checkpoint, %s, %d steps, %d replicas',
      count, sampler.name, sampler.steps, strategy.num_replicas_in_sync,
  )  # fmt: skip
  for path in paths:
    step, weights, params = run_.weights(path, FLAGS.weights)
    # Of the weights themselves: a workdir may be emptied and used again.
    digest = hashlib.sha256(params).hexdigest()
    directory = os.path.join(workdir, 'evaluation', f'{step:08d}_{digest[:8]}')
    called = f'samples of step {step}'
    samples = sources.GeneratedSamples(
        sampler,
        params,
        os.path.join(
            directory, f'{sampler.name}_{sampler.steps}_{sampler.digest}'
        ),
        identity=f'{digest} {sampler.name} {sampler.digest}',
        total=count,
        shape=run_.model.image_shape,
        labelled=config.model.num_classes > 0,
        name=called,
    )
    result = judge.score(samples, called)
    result['details'] |= {
        'checkpoint': path,
        'step': step,
        'weights': weights,
        'sampler': sampler.name,
        'steps': sampler.steps,
        'eta': sampler.eta,
        'guidance': sampler.guidance,
        'data': name,
        'split': split,
    }
    if bits:
      result |= bits(params, directory)
      result['details']['bpd_split'] = bpd_split
    report.record(workdir, result)
    print(f'step {step}\n{report.table(result)}', flush=True)
  logging.info('wrote %s', os.path.join(workdir, 'evaluation.jsonl'))
  return result


def _extractor(metrics, shape):
  """The `base.Extractor`, or None where no metric needs one."""
  if not metrics & evaluator.OF_FEATURES:
    return None
  default = 'mnist' if tuple(shape) == (28, 28, 1) else 'inception'
  return extractors.load(
      FLAGS.features or default,
      inception_weights=FLAGS.inception_weights,
      image_shape=shape,
  )


class _RealImages:
  """The splits of --data, each loaded once, in a random but fixed order."""

  def __init__(self, name, data_dir, shape):
    self._name = name
    self._data_dir = data_dir or '~/tensorflow_datasets'
    self._shape = tuple(shape)
    self._splits = {}

  def split(self, split):
    """A source of `sources`, of the shape that samples have."""
    if split not in self._splits:
      self._splits[split] = self._load(split)
    return self._splits[split]

  def _load(self, split):
    name, shape = self._name, self._shape
    if name.startswith('folder:'):
      if split != 'train':
        raise UserError(f'--split is {split}, but {name} has no splits')
      source = sources.Folder(name.removeprefix('folder:'), order=_order)
    elif name == 'mnist5k' or name.startswith('tfds:'):
      loaded = catalog.load(
          name,
          data_dir=self._data_dir,
          split=split,
          image_size=28 if name == 'mnist5k' else shape[0],
      )
      source = sources.InMemory(
          loaded.images,
          loaded.labels if loaded.num_classes else None,
          _order(len(loaded.images)),
      )
    else:
      raise UserError(
          f'--data is {name!r}, expected mnist5k, tfds:NAME or folder:PATH'
      )
    if tuple(source.shape) != shape:
      raise UserError(
          f'the samples are {sources.by(shape)}, but the images of {name} are'
          f' {sources.by(source.shape)}: compare like with like'
      )
    return source


def _order(n):
  """The same permutation of 0 to n - 1, int64 [n], on every machine."""
  return pipeline.batch_indices(
      0, 0, tf.range(n, dtype=tf.int64), batch_size=n, num_images=n
  ).numpy()


if __name__ == '__main__':
  program.start(main, define_flags)
