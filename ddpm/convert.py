"""Converts models from and to other formats.

  python -m ddpm.convert --from_diffusers=DIR --workdir=runs/cat
  python -m ddpm.convert --to_diffusers=DIR --workdir=runs/cat
  python -m ddpm.convert --to_savedmodel=DIR --workdir=runs/cat

--from_diffusers turns a saved DDPMPipeline into a workdir at step 0, to sample,
evaluate or train further. (With a --config whose train.label_dropout is not 0,
the pipeline's last class is the null class.) --to_diffusers writes such a
pipeline. --to_savedmodel writes a SavedModel that maps seeds to images, for
TensorFlow-only environments.
"""

import contextlib
import os

from absl import flags
from absl import logging
from etils import epy
from ml_collections import config_flags

from ddpm.run import defaults
from ddpm.runtime import program
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing
from ddpm.sampling import flags as sampler_flags

# Loaded in main.
with epy.lazy_imports():
  import tensorflow as tf

  from ddpm.formats import diffusers as diffusers_format
  from ddpm.nn import flat
  from ddpm.run import checkpoint
  from ddpm.run import config as config_lib
  from ddpm.run import lock
  from ddpm.run import reader
  from ddpm.runtime import preemption
  from ddpm.sampling import sampler as sampler_lib
  from ddpm.training import step as step_lib

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string(
      'from_diffusers', None, 'Folder to read: a DDPMPipeline or UNet2DModel.'
  )
  flags.DEFINE_string(
      'to_diffusers', None, 'Folder to create: a DDPMPipeline.'
  )
  flags.DEFINE_string(
      'to_savedmodel', None, 'Folder to create: a SavedModel of the sampler.'
  )
  flags.DEFINE_string(
      'workdir', None, "The run's folder; --from_diffusers creates it."
  )
  config_flags.DEFINE_config_file(
      'config',
      None,
      'Config file for what a pipeline lacks (data, optimizer, ...); with'
      ' --from_diffusers only. By default configs/default.py.',
      lock_config=True,
  )
  flags.DEFINE_string(
      'checkpoint',
      'latest',
      'latest, a step, or a path such as runs/mnist5k/checkpoints/ckpt-600.',
  )
  sampler_flags.define_flags()


def main():
  preemption.StopSignal()  # Exits at once: there is nothing to save.
  ((directory, convert),) = _chosen()
  convert(directory, FLAGS.workdir)


def check_flags():
  """Raises UserError if flags are out of range or do not fit together."""
  number = len(_chosen())
  if number != 1:
    raise UserError(
        'expected one of --from_diffusers, --to_diffusers and --to_savedmodel,'
        f' got {number}'
    )
  if not FLAGS.workdir:
    raise UserError("--workdir is missing: pass the run's folder")
  if FLAGS.config and not FLAGS.from_diffusers:
    raise UserError('--config needs --from_diffusers: a run has its own config')
  if FLAGS.config:
    program.check_config_found(FLAGS.config)
  sampler_flags.check_flags()


def _chosen():
  """The folder and the function of each conversion that is asked for."""
  modes = [
      (FLAGS.from_diffusers, from_diffusers),
      (FLAGS.to_diffusers, to_diffusers),
      (FLAGS.to_savedmodel, to_savedmodel),
  ]
  return [(directory, convert) for directory, convert in modes if directory]


def from_diffusers(directory, workdir):
  """Makes a workdir from a saved DDPMPipeline or UNet2DModel."""
  config = FLAGS.config or defaults.get_config()
  with _new_folder('workdir', workdir) as folder:
    config, model, params = diffusers_format.load(directory, config)
    layout = flat.Layout(model)
    train_step = step_lib.TrainStep.from_config(config, model, layout)
    state = train_step.initial_state(params)
    checkpoints = checkpoint.Checkpointer(
        folder, state, layout, writes=True, keep_last=1, keep_every_steps=0
    )
    checkpoints.restore()
    checkpoints.save(0)
    checkpoints.wait()
    config_lib.save(config, folder)
  logging.info(
      'wrote %s: %s parameters; next: python -m ddpm.sample --workdir=%s'
      ' --outdir=out, or to train further: python -m ddpm.main'
      ' --config=configs/workdir.py:%s --workdir=%s',
      workdir, f'{layout.size:,}', workdir, workdir, workdir,
  )  # fmt: skip


def to_diffusers(directory, workdir):
  """Writes a run's network as a DDPMPipeline."""
  with _new_folder('to_diffusers', directory) as folder:
    source, run, params = _read_run(workdir)
    diffusers_format.save(folder, run.config, run.model, params)
  logging.info(
      'wrote %s: %s parameters, %s; next, in Python:'
      " diffusers.DDPMPipeline.from_pretrained('%s')",
      directory, f'{run.layout.size:,}', source, directory,
  )  # fmt: skip


def to_savedmodel(directory, workdir):
  """Writes a run's sampler as a SavedModel that maps seeds to images."""
  with _new_folder('to_savedmodel', directory) as folder:
    source, run, params = _read_run(workdir)
    sampler = sampler_lib.for_run(
        run,
        **sampler_flags.settings(),
        batch_size=1,
        jit_compile=False,  # A server may lack XLA.
    )
    module = tf.Module()
    module.params = tf.Variable(params, trainable=False)
    serve = tf.function(
        lambda seeds, labels: {
            'images': sampler.draw(module.params, seeds, labels)[0]
        },
        input_signature=[
            tf.TensorSpec([None], tf.int32, name)
            for name in ('seeds', 'labels')
        ],
        autograph=False,
    )
    tf.saved_model.save(module, folder, {'serving_default': serve})
  logging.info(
      'wrote %s: %s parameters, %s, %s of %d steps; next, in Python:'
      " tf.saved_model.load('%s').signatures['serving_default']("
      'seeds=tf.range(4), labels=tf.zeros([4], tf.int32))',
      directory, f'{run.layout.size:,}', source, sampler.spec.sampler,
      sampler.spec.steps, directory,
  )  # fmt: skip


def _read_run(workdir):
  """Name and step of the weights, their `reader.Run`, and the weights."""
  path = checkpoint.find(workdir, FLAGS.checkpoint)
  run = reader.Run(workdir)
  step, name, params = run.weights(path, FLAGS.weights)
  return f'{name} of step {step}', run, params


@contextlib.contextmanager
def _new_folder(flag, path):
  """Creates a folder atomically. Yields the temporary path to write to."""
  path = path.rstrip('/')
  part, locked = f'{path}.incomplete', f'{path}.lock'
  with writing(f'--{flag} {path}'):
    if folder := os.path.dirname(path):
      tf.io.gfile.makedirs(folder)
  with lock.held(path, kind=flag, path=locked):
    try:
      with writing(f'--{flag} {path}'):
        exists = tf.io.gfile.exists(path)
        if exists and not tf.io.gfile.isdir(path):
          raise UserError(f'--{flag} {path} is a file, expected a new folder')
        if exists and tf.io.gfile.listdir(path):
          raise UserError(
              f'--{flag} {path} is not empty, expected a new folder'
          )
        if tf.io.gfile.exists(part):  # Left by a killed attempt.
          tf.io.gfile.rmtree(part)
        tf.io.gfile.makedirs(part)
      yield part
      with writing(f'--{flag} {path}'):
        if exists:
          tf.io.gfile.rmtree(path)
        tf.io.gfile.rename(part, path)
    finally:
      if tf.io.gfile.exists(part):
        tf.io.gfile.rmtree(part)
      if tf.io.gfile.exists(locked):
        tf.io.gfile.remove(locked)


if __name__ == '__main__':
  program.start(main, define_flags, check_flags)
