"""The training loop, from top to bottom."""

import math
import os
import time

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.diffusion import process as process_lib
from ddpm.nn import flat
from ddpm.optim import adam
from ddpm.optim import ema
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.run import lock
from ddpm.run import logs
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import UserError
from ddpm.sampling import sampler as sampler_lib
from ddpm.training import state as state_lib
from ddpm.training import step as step_lib

# Every grid of a run shows the same seeds, so that progress shows.
_GRID_SEEDS = np.arange(64)


def train(config, workdir, strategy, stop):
  """Trains to config.train.num_steps, from the newest checkpoint if any.

  Args:
    config: a valid config.
    workdir: folder of the run, shared by all workers.
    strategy: `tf.distribute.Strategy`.
    stop: `preemption.StopSignal`.

  Raises:
    UserError: something that the user can mend.
    Interrupted: stopped by a signal, or left alone by another worker; the same
      command goes on.
  """
  chief = strategy_lib.is_chief(strategy)
  with (
      lock.held(workdir, takes=chief),
      strategy_lib.watching_workers(strategy),
  ):
    _train(config, workdir, strategy, stop, chief)


def _train(config, workdir, strategy, stop, chief):
  if checkpoint.any_in(workdir):
    config_lib.check_same_trajectory(config, workdir)
  flag = stop.make_flag(config.train.grace_seconds)
  trainer = Trainer(config, strategy, flag)
  checkpoints = checkpoint.Checkpointer(
      workdir,
      trainer.state,
      trainer.layout,
      writes=chief,
      keep_last=config.train.keep_last,
      keep_every_steps=config.train.keep_every_steps,
  )
  step = saved = checkpoints.restore()
  strategy_lib.check_agreement(strategy, step)
  if chief:
    config_lib.save(config, workdir)
  log = logs.Writers(
      workdir, first_step=step, num_steps=config.train.num_steps, writes=chief
  )
  logging.info(
      '%s at step %d of %d: %s parameters, %d replicas x %d images',
      'resuming' if step else 'starting', step, config.train.num_steps,
      f'{trainer.layout.size:,}', strategy.num_replicas_in_sync,
      trainer.replica_batch_size,
  )  # fmt: skip

  blocks = trainer.blocks(step)
  block = None
  first_step = timed_step = step
  timed_at = time.monotonic()
  stopped = False
  while step < config.train.num_steps and not stopped:
    if block is None or step % config.train.steps_per_loop == 0:
      block = next(blocks)
    # The first call is one step, so that the wait for it has an end in sight.
    first = step == first_step
    n = 1 if first else _steps_to_next_event(step, config.train)
    step, stopped, metrics = trainer.run(
        block, step % config.train.steps_per_loop, n
    )
    log.progress(step)
    checkpoints.raise_errors()

    if _due(step, config.train.log_every_steps):
      images = (step - timed_step) * config.train.batch_size
      metrics['images_per_second'] = images / (time.monotonic() - timed_at)
      log.numbers(step, metrics)
    if first:
      logging.info('step %d done, compiled', step)
    if first or _due(step, config.train.log_every_steps):
      timed_step, timed_at = step, time.monotonic()
    if _due(step, config.train.checkpoint_every_steps):
      checkpoints.save(step)
      saved = step
    if _due(step, config.train.sample_every_steps):
      path = os.path.join(workdir, 'samples', f'step_{step:08d}.png')
      began = time.monotonic()
      log.images(step, path, trainer.draw)
      timed_at += time.monotonic() - began  # It is no part of training's speed.

  if saved != step:
    checkpoints.save(step)
  checkpoints.wait()
  path = os.path.join(workdir, 'grid.png')
  if not stopped:
    log.images(step, path, trainer.draw)
  log.close()
  if stopped or stop.heard:
    who = stop.heard or 'another worker'
    raise Interrupted(
        f'by {who}, step {step} is saved: run the same command to go on'
    )
  logging.info('step %d, done: %s', step, path)


class Trainer:
  """Model, data, state and compiled step of a config, on a strategy.

  Attributes:
    state: `state.State`.
    layout: `flat.Layout` of the model.
    replica_batch_size: images of one replica in a step.

  Args:
    config: a valid config.
    strategy: `tf.distribute.Strategy`.
    stop: scalar, or variable of one, on the host: not 0 ends `run` and `draw`
      early.

  Raises:
    UserError: config, data and strategy do not fit each other.
  """

  def __init__(self, config, strategy, stop=0.0):
    self._config = config
    self._strategy = strategy
    self._stop = stop
    replicas = strategy.num_replicas_in_sync
    if config.train.batch_size % replicas:
      raise UserError(
          f'config: train.batch_size {config.train.batch_size} is not'
          f' divisible by the {replicas} replicas: use'
          f' {max(1, config.train.batch_size // replicas) * replicas}, say'
      )
    self.replica_batch_size = config.train.batch_size // replicas
    if self.replica_batch_size % config.train.accumulation_steps:
      raise UserError(
          f'config: train.accumulation_steps {config.train.accumulation_steps}'
          f' does not divide the {self.replica_batch_size} images of a replica'
      )
    self._source = _load_data(config)
    self._model = build.make_model(config)
    self._diffusion = build.make_process(config)
    self._timesteps = build.make_noise_levels(config)
    self._ema_names = ema.names(config.ema.decays, config.ema.power_stds)
    self.layout = flat.Layout(self._model)
    self._sampler = None

    use_loss_scale = config.precision == 'mixed_float16'
    params = flat.flatten(self._model.trainable_variables)
    with strategy.scope():
      self.state = state_lib.State(
          params,
          ema_names=self._ema_names,
          use_loss_scale=use_loss_scale,
          memory=self._timesteps.initial(),
          num_terms=len(process_lib.loss_terms(config.diffusion.loss)),
      )
    self._max_skipped = config.train.max_skipped_steps * use_loss_scale
    self._loop = self._make_loop(use_loss_scale)

  def _make_loop(self, use_loss_scale):
    config = self._config
    gradient = step_lib.gradient_function(
        self._model,
        self.layout,
        self._diffusion,
        self._timesteps,
        seed=config.seed,
        batch_size=config.train.batch_size,
        replica_batch_size=self.replica_batch_size,
        random_flip=config.data.random_flip,
        dropout=config.model.dropout > 0,
        jit_compile=build.jit_compile(config),
        loss=config.diffusion.loss,
        min_snr_gamma=config.diffusion.min_snr_gamma,
        label_dropout=config.train.label_dropout,
        accumulation_steps=config.train.accumulation_steps,
    )
    per_replica = config.optimizer.clip == 'per_replica'
    update = step_lib.update_function(
        self.state,
        self._timesteps,
        seed=config.seed,
        batch_size=config.train.batch_size,
        rate=lambda step: adam.learning_rate(
            step,
            base=config.optimizer.learning_rate,
            warmup_steps=config.optimizer.warmup_steps,
            decay=config.optimizer.decay,
            decay_steps=config.optimizer.decay_steps,
        ),
        beta1=config.optimizer.beta1,
        beta2=config.optimizer.beta2,
        epsilon=config.optimizer.epsilon,
        clip_norm=0.0 if per_replica else config.optimizer.clip_norm,
        use_loss_scale=use_loss_scale,
        jit_compile=build.jit_compile(config),
        loss=config.diffusion.loss,
        rampup_ratio=config.ema.rampup_ratio,
        log_every_steps=config.train.log_every_steps,
    )
    replicas = self._strategy.num_replicas_in_sync
    local_clip = config.optimizer.clip_norm / replicas if per_replica else 0.0
    loop = step_lib.loop_function(
        self._strategy,
        self.state,
        gradient,
        update,
        local_clip_norm=local_clip,
        max_skipped_steps=self._max_skipped,
        stop=self._stop,
    )
    return tf.function(loop, autograph=False)

  def blocks(self, step):
    """Iterator over the blocks of batches, from the one that holds a step."""
    config = self._config

    def make_dataset(context):
      return pipeline.batches(
          self._source,
          seed=config.seed,
          batch_size=config.train.batch_size,
          first_block=step // config.train.steps_per_loop,
          steps_per_block=config.train.steps_per_loop,
          context=context,
      )

    return iter(
        self._strategy.distribute_datasets_from_function(make_dataset)
    )

  def run(self, block, first, n):
    """Runs n steps, from the `first` of a block.

    Returns:
      Steps done since the start of training; whether any worker was told to
      stop, so that there may be fewer than n more; a dict of numbers, the
      metrics of the last step.

    Raises:
      UserError: a step's loss or gradient was not finite (in float16, too
        many in a row); the state is that of the last good step.
    """
    metrics = self._loop(
        block, tf.constant(first), tf.constant(first + n)
    )
    metrics = {name: value.numpy().item() for name, value in metrics.items()}
    step, stop = metrics.pop('step'), metrics.pop('stop')
    # A quarter of the noise levels that no image fell in has no loss.
    metrics = {
        name: value for name, value in metrics.items()
        if not (name[-3:-1] == '_q' and math.isnan(value))
    }  # fmt: skip
    if metrics['skipped_steps'] > self._max_skipped:
      raise UserError(_not_finite(step, metrics))
    return step, bool(stop), metrics

  def draw(self):
    """Draws the grid of a run from the first EMA.

    Returns:
      uint8 [N, H, W, C], or None if it was told to stop.
    """
    if self._sampler is None:
      self._sampler = sampler_lib.Sampler(
          self._model,
          self.layout,
          self._diffusion,
          sampler=self._config.sample.sampler,
          steps=self._config.sample.steps,
          eta=self._config.sample.eta,
          batch_size=len(_GRID_SEEDS),
          jit_compile=build.jit_compile(self._config),
          stop=self._stop,
      )
    params = self.state.ema[self._ema_names[0]].read_value()
    images = np.concatenate(list(self._sampler(params, _GRID_SEEDS)))
    return None if tf.convert_to_tensor(self._stop) else images


def _load_data(config):
  source = catalog.load(
      config.data.name,
      data_dir=config.data.data_dir,
      split=config.data.split,
      image_size=config.data.image_size,
  )
  channels = source.images.shape[-1]
  if channels != config.model.image_channels:
    raise UserError(
        f'config: model.image_channels is {config.model.image_channels}, but'
        f' the images of {config.data.name} have {channels}'
    )
  classes = config.model.num_classes
  if classes and classes != source.num_classes:
    raise UserError(
        f'config: model.num_classes is {classes}, but {config.data.name} has'
        f' {source.num_classes}'
    )
  return source


def _not_finite(step, metrics):
  values = {
      'the loss': metrics['loss'],
      "the gradient's norm": metrics['gradient_norm'],
  }
  what = ' and '.join(
      f'{name} is {value}'
      for name, value in values.items()
      if not math.isfinite(value)
  )
  skipped = metrics['skipped_steps']
  in_a_row = f', after {skipped - 1} more such steps' if skipped > 1 else ''
  return (
      f'step {step}: {what}{in_a_row}: lower optimizer.learning_rate, or use'
      ' another precision; the last checkpoint is from before that'
  )


def _due(step, every):
  """Whether something that happens every so many steps (0: never) is due."""
  return bool(every) and step % every == 0


def _steps_to_next_event(step, train):
  """Steps until the loop must return: a block's end, a save, a log, the end."""
  periods = (
      train.steps_per_loop,
      train.log_every_steps,
      train.checkpoint_every_steps,
      train.sample_every_steps,
  )
  return min(train.num_steps - step, *(p - step % p for p in periods if p))
