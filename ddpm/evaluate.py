"""Scores a run's samples, or any other images.

  python -m ddpm.evaluate --workdir=runs/mnist5k
  python -m ddpm.evaluate --workdir=runs/mnist5k --every_checkpoint
  python -m ddpm.evaluate --samples=out/samples.npz --data=mnist5k

Finished samples are kept: rerun to resume.
"""

import os

from absl import flags
from absl import logging
from etils import epy

from ddpm.metrics import names
from ddpm.runtime import program
from ddpm.runtime.errors import UserError
from ddpm.sampling import flags as sampler_flags

# Loaded in main.
with epy.lazy_imports():
  from ddpm.api import scoring
  from ddpm.metrics import real_images
  from ddpm.metrics import report
  from ddpm.metrics import sources
  from ddpm.run import checkpoint
  from ddpm.run import reader
  from ddpm.runtime import files
  from ddpm.runtime import preemption
  from ddpm.runtime import strategy as strategy_lib
  from ddpm.runtime import strict_json

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string(
      'workdir', None, 'Folder of the run to score.'
  )
  flags.DEFINE_string(
      'samples', None, 'Images to score instead of a run: FILE.npz or a folder.'
  )
  flags.DEFINE_bool(
      'every_checkpoint', False, "Score all of the run's checkpoints."
  )
  flags.DEFINE_list(
      'metrics',
      list(names.METRICS),
      'Any of fid, kid, is, prdc, nearest, bpd (bits per dimension).',
  )
  flags.DEFINE_integer(
      'num_samples',
      None,
      'Images to score; by default 2000 for a run, all for --samples. Papers'
      ' use 50000.',
  )
  flags.DEFINE_string(
      'data',
      None,
      'Real images: mnist5k, folder:PATH, prepared:PATH or tfds:NAME; by'
      " default the run's.",
  )
  flags.DEFINE_string(
      'data_dir', None, 'Folder of the prepared tensorflow-datasets.'
  )
  flags.DEFINE_string(
      'split',
      None,
      'Split of the real images, train or test; by default train (bpd: test).',
  )
  flags.DEFINE_string(
      'features',
      None,
      'mnist (default for 28 x 28 x 1 images), inception (default for others),'
      ' efficientnet or savedmodel:DIR.',
  )
  flags.DEFINE_string(
      'inception_weights', None, 'Weights file for --features=inception.'
  )
  flags.DEFINE_string(
      'out', None, "JSON file for the result, or the last checkpoint's."
  )
  sampler_flags.define_flags()


def main():
  preemption.StopSignal()  # Exits at once: finished images are on disk.
  metrics = set(FLAGS.metrics)
  result = _score_images(metrics) if FLAGS.samples else _score_run(metrics)
  if FLAGS.out:
    text = strict_json.dumps(result, indent=2) + '\n'
    files.write_file(FLAGS.out, text.encode())


def check_flags():
  """Raises UserError if flags are out of range or do not fit together."""
  if 'TF_CONFIG' in os.environ:
    raise UserError(
        'TF_CONFIG is set, but ddpm.evaluate runs on one host: unset it'
    )
  if bool(FLAGS.workdir) == bool(FLAGS.samples):
    raise UserError('exactly one of --workdir and --samples is needed')
  if FLAGS.samples and not FLAGS.data:
    raise UserError(
        '--data is missing: --samples needs mnist5k, folder:PATH, prepared:PATH'
        ' or tfds:NAME'
    )
  if FLAGS.samples and FLAGS.every_checkpoint:
    raise UserError('--every_checkpoint needs --workdir, got --samples')
  names.check_metrics(FLAGS.metrics)
  if FLAGS.num_samples is not None:
    names.check_number(FLAGS.num_samples, FLAGS.metrics)
  if FLAGS.samples and 'bpd' in FLAGS.metrics:
    raise UserError('--metrics=bpd needs --workdir, got --samples')
  if FLAGS.split not in (None, 'train', 'test'):
    raise UserError(f'--split is {FLAGS.split!r}, expected train or test')
  sampler_flags.check_flags()


def _score_images(metrics):
  """Scores --samples; returns the result."""
  strategy = strategy_lib.local_strategy(name=FLAGS.strategy)
  samples = sources.samples(FLAGS.samples)
  count = FLAGS.num_samples or len(samples)
  names.check_number(count, metrics)
  if len(samples) < count:
    raise UserError(
        f'{FLAGS.samples} has {len(samples)} images, but --num_samples is'
        f' {count}'
    )
  if len(samples) > count:
    samples = sources.Chosen(samples, count)
  settings = {'data_dir': FLAGS.data_dir} if FLAGS.data_dir else {}
  real = real_images.RealImages(FLAGS.data, samples.shape, **settings)
  split = FLAGS.split or 'train'
  scorer = scoring.make_evaluator(
      metrics,
      real,
      split=split,
      training_split='train',
      features=FLAGS.features,
      inception_weights=FLAGS.inception_weights,
      num_samples=count,
      strategy=strategy,
  )
  result = scorer.score(samples, FLAGS.samples)
  result['details'] |= {
      'samples': FLAGS.samples,
      'data': FLAGS.data,
      'split': split,
  }
  print(report.table(result))
  return result


def _score_run(metrics):
  """Scores samples of --workdir; returns the last checkpoint's result."""
  workdir, count = FLAGS.workdir, FLAGS.num_samples or names.NUM_SAMPLES
  run = reader.Run(workdir)
  strategy = strategy_lib.local_strategy(
      count,
      name=FLAGS.strategy,
      virtual_devices=run.config.distribute.virtual_devices,
      jit_compile=run.config.jit_compile,
  )
  if FLAGS.every_checkpoint:
    paths = checkpoint.find_all(workdir)
  else:
    paths = [checkpoint.find(workdir, 'latest')]
  results = scoring.score_run(
      run,
      paths,
      metrics=metrics,
      num_samples=count,
      strategy=strategy,
      sampling=sampler_flags.settings(),
      weights=FLAGS.weights,
      data=FLAGS.data,
      data_dir=FLAGS.data_dir,
      split=FLAGS.split,
      features=FLAGS.features,
      inception_weights=FLAGS.inception_weights,
  )
  for result in results:
    step = result['details']['step']
    print(f'step {step}\n{report.table(result)}', flush=True)
  logging.info('wrote %s', os.path.join(workdir, 'evaluation.jsonl'))
  return result


if __name__ == '__main__':
  program.start(main, define_flags, check_flags)
