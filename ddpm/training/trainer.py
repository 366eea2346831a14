"""The training loop, from top to bottom."""

import contextlib
import functools
import math
import os
import time

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.data import resize
from ddpm.nn import flat
from ddpm.reporting import page
from ddpm.run import advice
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.run import events
from ddpm.run import lock
from ddpm.run import logs
from ddpm.run import provenance
from ddpm.runtime import cache
from ddpm.runtime import device_map
from ddpm.runtime import devices
from ddpm.runtime import hindrances
from ddpm.runtime import memory
from ddpm.runtime import profile as profile_lib
from ddpm.runtime import restarts
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime import topology
from ddpm.runtime import workers
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import UserError
from ddpm.sampling import sampler as sampler_lib
from ddpm.training import cost
from ddpm.training import step as step_lib

# Every grid of a run shows the same seeds, so that progress can be seen.
GRID_SEEDS = np.arange(64)

# Steps after the first, which compiles, that the estimate of the time left is
# based on.
_STEPS_OF_ESTIMATE = 20


def train(config, workdir, strategy, stop, profile=None):
  """Trains to config.train.num_steps, from the newest checkpoint if any.

  Args:
    config: a valid config.
    workdir: folder of the run, shared by all workers.
    strategy: `tf.distribute.Strategy`.
    stop: `preemption.StopSignal` or `preemption.NoSignal`.
    profile: first and last step to profile for TensorBoard, or None.

  Raises:
    UserError: something that the user can fix.
    Interrupted: stopped by a signal, or another worker has exited; the same
      command resumes.
  """
  chief = workers.is_chief(strategy)
  with lock.held(workdir, takes=chief):
    with (
        events.recorded(workdir, writes=chief) as record,
        workers.explained(strategy),
    ):
      _train(config, workdir, strategy, stop, profile, chief, record)
    if chief and config.report:
      page.write_or_warn(workdir)


def _train(config, workdir, strategy, stop, profile, chief, record):
  if checkpoint.any_in(workdir):
    config = config_lib.continued(config, workdir)
  flag = stop.make_flag(config.train.grace_seconds)
  trainer = Trainer(config, strategy, flag)
  workers.check_same_data(strategy, trainer.data['digest'])
  if checkpoint.any_in(workdir):
    provenance.check_same_data(workdir, **trainer.data)
  checkpoints = checkpoint.Checkpointer(
      workdir,
      trainer.state,
      trainer.layout,
      writes=chief,
      keep_last=config.train.keep_last,
      keep_every_steps=config.train.keep_every_steps,
  )
  step = saved = checkpoints.restore(
      functools.partial(workers.gather, strategy)
  )
  if chief:
    config_lib.save(config, workdir)
    provenance.write(workdir, **trainer.data)
    for sentence in advice.advice(config):
      logging.warning('%s', sentence)
  num_steps = config.train.num_steps
  log = logs.Writers(workdir, config, first_step=step, writes=chief)
  logging.info(
      '%s at step %d of %d: %s parameters, %s',
      'resuming' if step else 'starting', step, num_steps,
      f'{trainer.layout.size:,}', trainer.devices,
  )  # fmt: skip
  record(
      'start',
      step=step,
      parameters=trainer.layout.size,
      devices=trainer.devices,
      **provenance.software(),
  )

  if began_at_end := step >= num_steps:
    logging.info(
        '%s is at step %d, and config.train.num_steps is %d: nothing to train',
        workdir, step, num_steps,
    )  # fmt: skip
  stopped = False
  watch = hindrances.Hindrances(strategy)
  profiler = profile_lib.Profiler(
      profile, logs.board_folder(workdir), done=step, writes=chief
  )
  estimate_at = step + 1 + _STEPS_OF_ESTIMATE
  while step < num_steps and not stopped:
    event = next_event(step, config.train, estimate_at, *profiler.marks)
    profiler.before(step)
    step, stopped, metrics = trainer.run_until(event)
    profiler.after(step, stopped=stopped)
    restarts.report_step(step)
    checkpoints.raise_errors()
    if step == estimate_at:
      log.estimate(step, trainer.throughput.rate(step), watch.so_far())
    if _due(step, config.train.log_every_steps):
      log.scalars(step, metrics | trainer.measure(step), saved=saved)
    if _due(step, config.train.checkpoint_every_steps):
      with trainer.throughput.waiting('checkpoint'):
        log.upload()
        checkpoints.save(step)
      saved = step
    if step < num_steps and _due(step, config.train.sample_every_steps):
      with trainer.throughput.waiting('grid'):
        log.images(step, trainer.draw, _grid_path(workdir, step))

  if saved != step:
    checkpoints.save(step, leaving=stopped)
  checkpoints.wait()
  grids = [os.path.join(workdir, 'grid.png')]
  if _due(step, config.train.sample_every_steps):
    grids.append(_grid_path(workdir, step))
  if not (stopped or (began_at_end and tf.io.gfile.exists(grids[0]))):
    log.images(step, trainer.draw, *grids)
  log.close()
  if stopped or stop.heard:
    who = stop.heard or 'another worker'
    raise Interrupted(
        f'by {who}, step {step} is saved: rerun the command to resume'
    )
  logging.info('step %d, done: %s', step, grids[0])


class Trainer:
  """Model, data, state and compiled step of a config, on a strategy.

  Attributes:
    state: `state.State`.
    layout: `flat.Layout` of the model.
    replica_batch_size: images of one replica in a step.
    devices: what trains, '2 CPU devices x 32 images, oneDNN'.
    data: what it trains on: name, number of images and their digest.
    throughput: `Throughput`.

  Args:
    config: a valid config.
    strategy: `tf.distribute.Strategy`.
    stop: scalar, or variable of one, on the host: if it is not 0, `run_until`
      and `draw` end early.

  Raises:
    UserError: config, data and strategy do not fit together.
  """

  def __init__(self, config, strategy, stop=0.0):
    self._config = config
    self._strategy = strategy
    self._stop = stop
    self.replica_batch_size = replica_batch_size(
        config, strategy.num_replicas_in_sync
    )
    self._jit_compile = build.jit_compile(config, strategy)
    self.devices = devices.describe(
        strategy, self.replica_batch_size, jit_compile=self._jit_compile
    )
    if workers.are_several(strategy):  # Alone, loading fetches it.
      _fetch_data(config, strategy)
    self._source = _load_data(config)
    size = build.image_size(config)
    # With random_crop, images are larger than what is trained on.
    self._part_size = None if self._source.shape[:2] == size else size
    self._steps_per_block = pipeline.steps_per_block(
        config.train.steps_per_loop,
        self.replica_batch_size * math.prod(self._source.shape),
    )
    self.data = {
        'name': config.data.name,
        'images': len(self._source),
        'digest': self._source.digest,
    }
    self._model = build.make_model(config)
    self.layout = flat.Layout(self._model)
    params = flat.flatten(self._model.trainable_variables)
    train_step = step_lib.TrainStep.from_config(
        config, self._model, self.layout
    )
    with strategy.scope():
      self.state = train_step.initial_state(params)
    self._train_step = train_step
    self._gradient = step_lib.compile_gradient(
        train_step,
        self.state.specs(),
        replica_batch_size=self.replica_batch_size,
        jit_compile=self._jit_compile,
    )
    self._update = step_lib.compile_update(
        train_step, self.state.specs(), jit_compile=self._jit_compile
    )
    self._loop = step_lib.Loop(
        train_step,
        self.state,
        strategy,
        gradient=self._gradient,
        update=self._update,
        stop=stop,
    )
    self._sampling_weights = train_step.emas.names[0]
    self._sampler = None
    self.throughput = Throughput(config.train.batch_size)
    self._flops_per_second = None  # Of all devices, if that is known.
    if device := topology.device_named(devices.model(strategy) or ''):
      peak = device.peak(config.precision)
      self._flops_per_second = strategy.num_replicas_in_sync * peak
      self._flops_per_image = cost.of_training_on_an_image(self._model)
    # The next step, the block of batches that it is in, and the metrics that
    # the host has seen.
    self._step = self._blocks = self._block = self._seen = None
    self._compiled = False

  def run_until(self, event):
    """Runs from the state's step until an event's, unless it has to stop.

    Args:
      event: the step to reach.

    Returns:
      Steps done since the start of training; whether a worker was asked to
      stop, so that they may be fewer than `event`; a dict of the last step's
      metrics.

    Raises:
      UserError: a step's loss or gradient was not finite (in float16, too
        many in a row); the state is that of the last good step.
    """
    step = int(self.state.step.numpy())
    if step != self._step:  # The first call, or the state was restored.
      self._block, self._blocks = None, self._make_blocks(step)
      self._seen = self._loop.restart()
      self.throughput.restart(step)
    while step < event and self._loop.may_go_on(self._seen):
      first = step % self._steps_per_block
      if self._block is None or first == 0:
        with self._source.reading(), self.throughput.waiting('data'):
          self._block = next(self._blocks)
      last = min(first + event - step, self._steps_per_block)
      if not self._compiled:
        last = first + 1  # To log when compiling is done.
        if self._jit_compile and cache.serves_xla():
          step_lib.compile_on_one_device(
              self._gradient, self._update, self.state, self._strategy
          )
      self._seen = self._loop.run(
          self._block, tf.constant(first), tf.constant(last), self._seen
      )
      step += last - first
      if not self._compiled:
        self._loop.newest()  # Waits for it.
        logging.info('step %d done, compiled', step)
        self._compiled = True
        # Only if the log wants this step's rate does it include compiling.
        if not _due(step, self._config.train.log_every_steps):
          self.throughput.restart(step)
    self._step, stopped, metrics = self._check(self._loop.newest())
    return self._step, stopped, metrics

  def _make_blocks(self, step):
    """Iterator over the blocks of batches, from the one that holds a step."""
    config = self._config

    def make_dataset(context):
      return pipeline.batches(
          self._source,
          seed=config.seed,
          batch_size=config.train.batch_size,
          shuffle_rounds=config.data.shuffle_rounds,
          first_block=step // self._steps_per_block,
          steps_per_block=self._steps_per_block,
          context=context,
          part_size=self._part_size,
          remote=strategy_lib.has_remote_hosts(self._strategy),
      )

    return strategy_lib.iterate(self._strategy, make_dataset)

  def _check(self, metrics):
    """Step, whether to stop, and metrics as floats, of the last step."""
    metrics = {name: value.numpy().item() for name, value in metrics.items()}
    step, stop = metrics.pop('step'), metrics.pop('stop')
    # A quartile of the noise levels without any image has no loss.
    metrics = {
        name: value for name, value in metrics.items()
        if not (name[-3:-1] == '_q' and math.isnan(value))
    }  # fmt: skip
    if self._train_step.is_frozen(metrics):
      raise UserError(_not_finite(step, metrics))
    return step, bool(stop), metrics

  def measure(self, step):
    """What is worth knowing about a logged step, beside its own metrics.

    It is computed here, on the host's request, so that the compiled step need
    not.

    Args:
      step: steps done.

    Returns:
      Dict of floats: what `Throughput.lap` measures; the weights' norm, and how
      far the first EMA is from them, as a fraction of it; memory in GiB; and on
      GPUs whose peak is known, the fraction of it that the FLOPs of training
      are (MFU).
    """
    params = self.state.params.read_value()
    ema = self.state.ema[self._sampling_weights].read_value()
    norm = tf.norm(params)
    measured = self.throughput.lap(step) | {
        'weight_norm': norm.numpy().item(),
        'ema_distance': (tf.norm(params - ema) / norm).numpy().item(),
        'host_memory_gib': memory.resident() / 2**30,
    }
    if peak := devices.peak_memory(self._strategy):
      measured['device_memory_gib'] = peak / 2**30
    if self._flops_per_second:
      flops = measured['images_per_second'] * self._flops_per_image
      measured['mfu'] = flops / self._flops_per_second
    return measured

  def draw(self):
    """Draws the grid of a run from the first EMA.

    Returns:
      uint8 [N, H, W, C], or None if it had to stop.
    """
    if self._sampler is None:
      # Only the chief draws: on its own devices.
      strategy = strategy_lib.of_this_process(self._strategy)
      self._sampler = sampler_lib.Sampler(
          self._model,
          self.layout,
          build.make_process(self._config),
          build.make_sampler_spec(self._config),
          batch_size=device_map.batch_size(
              strategy, len(GRID_SEEDS), most=len(GRID_SEEDS)
          ),
          strategy=strategy,
          jit_compile=self._jit_compile,
          # A TPU cannot read the host's variable in a loop.
          stop=0.0 if devices.kind(strategy) == 'TPU' else self._stop,
      )
    params = self.state.ema[self._sampling_weights].read_value()
    images = np.concatenate(list(self._sampler(params, GRID_SEEDS)))
    return None if tf.convert_to_tensor(self._stop) else images


class Throughput:
  """Images per second of training, and what the loop waits for.

  Compiling and grids do not count as training.

  Args:
    batch_size: images of a step.
  """

  def __init__(self, batch_size):
    self._batch_size = batch_size
    self.restart(0)

  def restart(self, step):
    """Begins to measure at a step."""
    self._step, self._began = step, time.monotonic()
    self._waited = dict.fromkeys(('data', 'checkpoint', 'grid'), 0.0)

  def rate(self, step):
    """Images per second up to a step."""
    return (step - self._step) * self._batch_size / self._seconds()

  def lap(self, step):
    """Measures up to a step, and begins again there.

    Returns:
      Dict of floats: images_per_second; data_wait_share, of the time for them;
      checkpoint_seconds and grid_seconds, that the loop waited.
    """
    waited = self._waited
    measured = {
        'images_per_second': self.rate(step),
        'data_wait_share': waited['data'] / self._seconds(),
        'checkpoint_seconds': waited['checkpoint'],
        'grid_seconds': waited['grid'],
    }
    self.restart(step)
    return measured

  def _seconds(self):
    return time.monotonic() - self._began - self._waited['grid']

  @contextlib.contextmanager
  def waiting(self, what):
    """Counts the time in its context as waiting for data, checkpoint or grid.
    """
    began = time.monotonic()
    yield
    self._waited[what] += time.monotonic() - began


def next_event(step, train, *others):
  """The next step at which the loop logs, saves, samples or ends.

  Args:
    step: steps done.
    train: `config.train`.
    *others: more steps at which something happens.
  """
  periods = (
      train.log_every_steps,
      train.checkpoint_every_steps,
      train.sample_every_steps,
  )
  events = [step + p - step % p for p in periods if p]
  events += [other for other in others if other > step]
  return min(train.num_steps, *events)


def _due(step, every):
  """Whether an event that happens every so many steps (0: never) is due."""
  return bool(every) and step % every == 0


def _grid_path(workdir, step):
  return os.path.join(workdir, 'samples', f'step_{step:08d}.png')


def replica_batch_size(config, replicas):
  """Images of one of some replicas in a step.

  Raises:
    UserError: the batch is not divisible by them, or by the microbatches.
  """
  train = config.train
  if train.batch_size % replicas:
    raise UserError(
        f'config.train.batch_size is {train.batch_size}, which the {replicas}'
        f' replicas do not divide: use'
        f' {max(1, train.batch_size // replicas) * replicas}, for example'
    )
  size = train.batch_size // replicas
  if size % train.accumulation_steps:
    raise UserError(
        f'config.train.accumulation_steps is {train.accumulation_steps}, which'
        f' does not divide the {size} images of a replica'
    )
  return size


def _fetch_data(config, strategy):
  name, data_dir = config.data.name, config.data.data_dir
  workers.chief_first(
      strategy,
      lambda: catalog.is_here(name, data_dir),
      lambda: catalog.fetch(name, data_dir),
      f'{name} is not in {data_dir}: waiting for the chief, which prepares it',
  )


def _load_data(config):
  name = config.data.name
  settings = build.data_settings(config)
  if config.data.resize == 'random_crop':
    if name == 'mnist5k':
      raise UserError(
          'config.data.resize is random_crop, for which the images of mnist5k'
          ' are too small: use center_crop'
      )
    settings['image_size'] = resize.with_margin(*settings['image_size'])
  source = catalog.load(name, split=config.data.split, **settings)
  channels = source.shape[-1]
  if channels != config.model.image_channels:
    raise UserError(
        f'config.model.image_channels is {config.model.image_channels}, but the'
        f' images of {name} have {channels}'
    )
  classes = config.model.num_classes
  if not classes:
    return source
  if classes != source.num_classes:
    raise UserError(
        f'config.model.num_classes is {classes}, but {name} has'
        f' {source.num_classes}'
    )
  return source.with_classes(classes, config.data.unlabelled)


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
      ' another precision; the last checkpoint is from before'
  )
