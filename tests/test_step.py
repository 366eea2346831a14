"""The step: pure, the same on any number of replicas, traced once."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support import ROOT
from support import tiny_config
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import losses as losses_lib
from ddpm.diffusion import noise_levels
from ddpm.diffusion import process as process_lib
from ddpm.optim import adam
from ddpm.optim import ema
from ddpm.run import build
from ddpm.runtime import devices
from ddpm.runtime.errors import UserError
from ddpm.training import cost
from ddpm.training import step as step_lib
from ddpm.training import trainer as trainer_lib


def strategy_of(replicas):
  if replicas == 1:
    return tf.distribute.OneDeviceStrategy('CPU:0')
  # Collectives of several sizes do not live together in one process;
  # test_main.py runs them as they are, one to a process.
  return tf.distribute.MirroredStrategy(
      [f'CPU:{i}' for i in range(replicas)],
      cross_device_ops=tf.distribute.ReductionToOneDevice(),
  )


# Most of a test is the compiling of a trainer. So one is shared by the tests,
# and only what XLA may change is compiled by XLA.
WITHOUT_XLA = {'jit_compile': False}


def make_trainer(replicas, stop=0.0, **overrides):
  config = tiny_config(**overrides)
  return trainer_lib.Trainer(config, strategy_of(replicas), stop)


def losses_of(trainer, steps):
  """The losses of a new trainer's first steps, each run by a call."""
  losses = []
  for step in range(1, steps + 1):
    done, stopped, metrics = trainer.run_until(step)
    assert (done, stopped) == (step, False)
    losses.append(metrics['loss'])
  return np.array(losses)


@pytest.fixture(scope='module')
def shared():
  """A trainer of one device, the state it began with, and its losses."""
  trainer = make_trainer(1)
  state = trainer.state.read()
  return trainer, state, losses_of(trainer, 6)


@pytest.fixture
def one_device(shared):
  """The shared trainer, as if it were new."""
  trainer, state, _ = shared
  tf.nest.map_structure(
      lambda v, x: v.assign(x), trainer.state.variables(), state
  )
  return trainer


@pytest.fixture
def expected(shared):
  """The losses of one device, step by step."""
  return shared[2]


def test_replicas_follow_the_trajectory_of_one(expected):
  trainer = make_trainer(2, **WITHOUT_XLA)
  step_lib.compile_on_one_device(
      trainer._gradient, trainer._update, trainer.state, trainer._strategy
  )
  assert trainer.state.step.numpy() == trainer.state.skipped_steps.numpy() == 0
  losses = losses_of(trainer, 6)
  np.testing.assert_allclose(losses[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(losses, expected, rtol=1e-4)
  for copy in trainer.state.params.values:
    np.testing.assert_array_equal(copy, trainer.state.params.values[0])


LEARNED = {
    'diffusion.loss': 'hybrid',
    'diffusion.variance': 'learned_range',
    'diffusion.timesteps': 'loss_second_moment',
    'diffusion.prediction': 'eps',
    'diffusion.num_timesteps': 4,
    'model.num_classes': 10,
    'train.label_dropout': 0.2,
    'ema.power_stds': (0.05,),
}
EDM = {
    'diffusion.schedule': 'edm',
    'diffusion.prediction': 'edm',
    'diffusion.timesteps': 'lognormal',
    'diffusion.variance': 'fixedsmall',
    'model.channel_multipliers': (1, 1),
    'model.patch_size': 2,
    'model.variant': 'ddpmpp',
    'model.resample': 'block',
    'model.init': 'edm',
    'ema.rampup_ratio': 0.05,
    'sample.sampler': 'heun',
}


@pytest.mark.parametrize(
    'settings, steps',
    [(LEARNED, 12), pytest.param(EDM, 3, marks=pytest.mark.slow)],
)
def test_what_successors_add_follows_the_trajectory_of_one(settings, steps):
  """The loss history, classes, EMAs: on two replicas, with accumulation."""
  one = make_trainer(1, **WITHOUT_XLA, **settings)
  parts = {'train.accumulation_steps': 2, 'train.remat': True}
  two = make_trainer(2, **WITHOUT_XLA, **settings, **parts)
  losses = losses_of(one, steps)
  np.testing.assert_allclose(losses_of(two, steps), losses, rtol=1e-3)
  assert losses[-1] < losses[0]
  if settings is LEARNED:
    # Warm: the choice of timesteps follows the losses.
    counts = one.state.loss_history['counts']
    assert tf.reduce_min(counts) >= 10
    np.testing.assert_array_equal(counts, two.state.loss_history['counts'])
  images = one.draw()
  assert images.shape == (64, 28, 28, 1) and images.std() > 10


@pytest.mark.parametrize(
    'overrides, tolerance',
    [
        (WITHOUT_XLA, 1e-5),
        ({'precision': 'mixed_bfloat16'}, 2e-2),
        pytest.param(
            {'precision': 'mixed_float16'}, 5e-3, marks=pytest.mark.slow
        ),
    ],
)
def test_jit_and_precision_change_only_the_rounding(
    expected, overrides, tolerance
):
  losses = losses_of(make_trainer(1, **overrides), 3)
  np.testing.assert_allclose(losses, expected[:3], rtol=tolerance)
  if 'precision' in overrides:
    assert np.any(losses != expected[:3])


def test_steps_in_one_call_are_steps_one_by_one(one_device, expected):
  # Two blocks of two steps, then half of one.
  losses = [one_device.run_until(step)[2]['loss'] for step in (4, 5)]
  np.testing.assert_array_equal(losses, expected[[3, 4]])
  assert one_device.state.step.numpy() == 5


def test_the_whole_loop_compiles_as_a_tpu_would_have_it(one_device, expected):
  """XLA takes the multi-step function whole: all shapes static, no host op."""
  loop = one_device._loop
  run = tf.function(loop.run.python_function, jit_compile=True, autograph=False)
  block = next(one_device._make_blocks(0))
  run(block, tf.constant(0), tf.constant(2), loop.restart())
  np.testing.assert_allclose(loop.newest()['loss'], expected[1], rtol=1e-5)


def test_what_is_measured_at_a_logged_step(one_device):
  one_device.run_until(2)
  before = [v.numpy() for v in tf.nest.flatten(one_device.state.variables())]
  measured = one_device.measure(2)
  params = one_device.state.params.numpy()
  norm = np.linalg.norm(params)
  assert measured['weight_norm'] == pytest.approx(norm, rel=1e-5)
  distance = np.linalg.norm(params - one_device.state.ema['0.995']) / norm
  assert measured['ema_distance'] == pytest.approx(distance, rel=1e-4)
  assert distance > 0 and measured['host_memory_gib'] > 0.1
  # A CPU has no memory of its own, nor a known peak.
  assert not {'device_memory_gib', 'mfu'} & set(measured)
  after = tf.nest.flatten(one_device.state.variables())
  tf.nest.map_structure(np.testing.assert_array_equal, after, before)


def test_flops_are_compared_with_a_known_peak(monkeypatch):
  monkeypatch.setattr(devices, 'model', lambda _: 'NVIDIA H100 80GB HBM3')
  trainer = make_trainer(2, **WITHOUT_XLA)
  trainer.throughput.restart(-1)  # As if a step had been done.
  measured = trainer.measure(0)
  flops = cost.of_training_on_an_image(build.make_model(tiny_config()))
  # Of two devices, in TF32.
  expected = measured['images_per_second'] * flops / (2 * 495e12)
  assert 0 < measured['mfu'] == pytest.approx(expected)


def test_time_is_spent_on_training_or_waited(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(trainer_lib.time, 'monotonic', lambda: now[0])
  throughput = trainer_lib.Throughput(8)
  throughput.restart(10)
  now[0] += 3
  for what, seconds in (('data', 1), ('grid', 5), ('checkpoint', 4)):
    with throughput.waiting(what):
      now[0] += seconds
  # 8 s for 4 steps, as grids are no training.
  assert throughput.rate(14) == 4
  assert throughput.lap(14) == {
      'images_per_second': 4, 'data_wait_share': 1 / 8, 'grid_seconds': 5,
      'checkpoint_seconds': 4,
  }  # fmt: skip
  now[0] += 1
  assert throughput.lap(15) == {
      'images_per_second': 8, 'data_wait_share': 0, 'grid_seconds': 0,
      'checkpoint_seconds': 0,
  }  # fmt: skip


def test_the_loop_returns_where_something_happens():
  train = tiny_config(
      **{
          'train.num_steps': 40, 'train.log_every_steps': 20,
          'train.checkpoint_every_steps': 30, 'train.sample_every_steps': 0,
      }
  ).train  # fmt: skip
  events, step = [], 0
  while step < 40:
    step = trainer_lib.next_event(step, train, 5, 24, 29, 50)
    events.append(step)
  assert events == [5, 20, 24, 29, 30, 40]


class Spy:
  """In a model's place: records its inputs; `output` is what it predicts."""

  image_shape = (8, 8, 1)
  dropout = 0.0

  def __init__(self, output, num_classes=0):
    self.num_classes = num_classes
    self._output = output
    self.inputs = {}

  def stateless_call(self, weights, _, x, t, labels, dropout_keys):
    self.inputs = {'x': x, 't': t, 'labels': labels}
    return self._output(x, labels) + 0 * tf.reduce_sum(weights[0]), []


def make_step(network, **kwargs):
  """A `TrainStep` of 4 images; see its attributes for `kwargs`."""
  settings = {
      'model': network.model,
      'layout': network.layout,
      'loss': losses_lib.Loss(network.diffusion),
      'noise_levels': noise_levels.Uniform(20),
      'optimizer': adam.Adam(adam.LearningRate(0.1), beta2=0.99),
      'clip': adam.Clip(),
      'loss_scale': adam.LossScale(),
      'emas': ema.EMAs((0.9,)),
      'seed': 0,
      'batch_size': 4,
  } | kwargs
  return step_lib.TrainStep(**settings)


IMAGES = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 1], np.uint8)


def batch_of(images, labels=None, start=0):
  """Images of the positions from `start` on, as a step takes them."""
  b = len(images)
  return {
      'image': tf.constant(images),
      'label': tf.zeros([b], tf.int32) if labels is None else labels,
      'position': tf.range(start, start + b, dtype=tf.int64),
  }


def inputs_of(params, step=3, loss_scale=1.0, loss_history=None):
  return {
      'params': params,
      'step': tf.constant(step, tf.int64),
      'loss_scale': tf.constant(loss_scale),
      'loss_history': loss_history or {},
  }


def test_loss_is_the_papers(network):
  """L_simple by hand, from the step's own timesteps and noise."""
  spy = Spy(lambda x, labels: tf.zeros_like(x))
  step = make_step(network, model=spy)
  black = np.zeros([4, 8, 8, 1], np.uint8)
  packed = step.gradient(
      inputs_of(network.params), tf.constant(0.0), batch_of(black)
  )
  gradient, losses, _ = step.unpack(packed)
  abar = network.diffusion.alphas_cumprod[spy.inputs['t'].numpy().astype(int)]
  abar = abar.reshape(-1, 1, 1, 1)
  # x_t is of images of -1.
  noise = (spy.inputs['x'] + np.sqrt(abar)) / np.sqrt(1 - abar)
  assert abs(noise.numpy().mean()) < 0.2
  # For an output of zero, the mean square of the noise.
  expected = np.mean(noise.numpy() ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(losses[0], expected, rtol=1e-4)
  assert np.mean(losses) == pytest.approx(1, abs=0.25)
  np.testing.assert_array_equal(gradient, 0)


def gradient_of(network, replica_batch_size=4, jit_compile=False, **kwargs):
  """A function that computes the gradient [P], the losses [1, 4], and stop."""
  step = make_step(network, random_flip=True, **kwargs)
  function = tf.function(step.gradient, jit_compile=jit_compile)

  def call(step_number=3, start=0, loss_scale=1.0, params=None, stop=0.0):
    params = network.params if params is None else params
    packed = function(
        inputs_of(params, step_number, loss_scale),
        tf.constant(stop),
        batch_of(IMAGES[start : start + replica_batch_size], start=start),
    )
    return [x.numpy() for x in step.unpack(packed)]

  return call


@pytest.fixture(scope='module')
def gradient(network):
  return gradient_of(network)


def test_shares_of_replicas_sum_to_the_whole(network, gradient):
  whole, losses, _ = gradient()
  half = gradient_of(network, replica_batch_size=2)
  first, second = half(start=0), half(start=2, stop=1.0)
  np.testing.assert_allclose(first[0] + second[0], whole, atol=2e-6)
  np.testing.assert_allclose(first[1] + second[1], losses, rtol=1e-5)
  # Each replica knows the losses of its own images, and its own worker's stop.
  np.testing.assert_array_equal(second[1][0, :2], 0)
  assert (first[2], second[2]) == (0, 1)
  assert np.linalg.norm(whole) > 0.1


@pytest.mark.parametrize('jit_compile', [False, True])
def test_accumulated_shards_are_the_large_batch(
    network, gradient, jit_compile
):
  shards = gradient_of(
      network, accumulation_steps=2, jit_compile=jit_compile
  )
  for got, whole in zip(shards(stop=1.0), gradient(stop=1.0)):
    np.testing.assert_allclose(got, whole, atol=1e-5 * np.abs(whole).max())


def test_a_rare_timestep_weighs_more(network):
  """The gradient is that of the weighted mean; the losses have no weight."""
  levels = noise_levels.LossSecondMoment(20)
  history = {
      'losses': tf.repeat(tf.range(1.0, 21.0)[:, None], 10, axis=1),
      'counts': tf.fill([20], tf.constant(10, tf.int64)),
  }
  step = make_step(network, noise_levels=levels)
  inputs = inputs_of(network.params, loss_history=history)
  packed = step.gradient(inputs, tf.constant(0.0), batch_of(IMAGES))
  losses = step.unpack(packed)[1].numpy()[0]
  t, weight, _ = levels.draw(noise_level_keys(step, 3), history)
  p = np.arange(1, 21) / 210 * 0.999 + 0.001 / 20
  np.testing.assert_allclose(weight, 1 / (20 * p[t]), rtol=1e-5)

  state = step.initial_state(network.params).read()
  new, metrics = step.update(state | inputs, packed)
  expected = np.mean(losses * weight)
  assert float(metrics['loss']) == pytest.approx(expected, rel=1e-5)
  assert int(tf.reduce_sum(new['loss_history']['counts'])) == 204
  kept = new['loss_history']['losses'].numpy()
  assert all(loss in kept[i] for i, loss in zip(t, losses))


def noise_level_keys(step, number):
  """The keys of a step's noise levels: the first stream of each example's."""
  keys = step.keys(number, tf.range(step.batch_size, dtype=tf.int64))
  return rng.fold_in(keys, 0)


def test_label_dropout_withholds_classes(network):
  # The labels, as the losses show them.
  spy = Spy(
      lambda x, labels: tf.cast(labels, x.dtype)[:, None, None, None]
      * tf.ones_like(x),
      num_classes=3,
  )
  process = process_lib.Diffusion(network.diffusion.betas, prediction='x0')
  step = make_step(
      network, model=spy, loss=losses_lib.Loss(process), batch_size=256,
      label_dropout=0.25,
  )  # fmt: skip
  white = tf.fill([256, 8, 8, 1], np.uint8(255))
  packed = step.gradient(
      inputs_of(network.params), tf.constant(0.0),
      batch_of(white, labels=tf.range(256) % 3),
  )  # fmt: skip
  _, losses, _ = step.unpack(packed)
  labels = np.sqrt(losses[0])  # |label - 1|
  dropped = labels == 2  # the null class, 3
  assert 0.15 < dropped.mean() < 0.35
  np.testing.assert_array_equal(
      labels[~dropped], np.abs(np.arange(256) % 3 - 1.0)[~dropped]
  )
  np.testing.assert_array_equal(spy.inputs['labels'] == 3, dropped)


def test_gradient_depends_on_seed_and_step_and_not_on_the_loss_scale(
    network, gradient
):
  whole = gradient()[0]
  np.testing.assert_array_equal(gradient()[0], whole)
  np.testing.assert_allclose(gradient(loss_scale=1024.0)[0], whole, atol=1e-6)
  assert np.abs(gradient(step_number=4)[0] - whole).max() > 1e-3
  assert np.abs(gradient_of(network, seed=1)()[0] - whole).max() > 1e-3


def test_gradient_is_the_slope_of_the_loss(network, gradient):
  whole = gradient()[0]
  direction = whole / np.linalg.norm(whole)
  losses = [
      gradient(params=network.params + distance * direction)[1].mean()
      for distance in (-1e-2, 1e-2)
  ]
  slope = (losses[1] - losses[0]) / 2e-2
  assert slope == pytest.approx(np.linalg.norm(whole), rel=1e-2)


class TwoWeights:
  """In a layout's place, for updates without a network."""

  size = 2


def make_update(network, jit_compile=False, **kwargs):
  """A step of one image and two weights, its state, and its update."""
  settings = {'layout': TwoWeights(), 'batch_size': 1} | kwargs
  step = make_step(network, **settings)
  state = step.initial_state(tf.constant([1.0, 2.0])).read()
  return step, state, tf.function(step.update, jit_compile=jit_compile)


def test_update_moves_every_part_of_the_state(network):
  step, state, update = make_update(network, emas=ema.EMAs((0.9, 0.5)))
  packed = step.pack(
      tf.constant([3.0, 4.0]), tf.constant([[0.7]]), tf.constant(1.0)
  )
  new, metrics = update(state, packed)
  np.testing.assert_allclose(new['params'], [0.9, 1.9], rtol=1e-6)
  np.testing.assert_allclose(new['adam_m'], [0.3, 0.4], rtol=1e-5)
  np.testing.assert_allclose(new['adam_v'], [0.09, 0.16], rtol=1e-4)
  np.testing.assert_allclose(new['ema']['0.9'], [0.99, 1.99], rtol=1e-6)
  np.testing.assert_allclose(new['ema']['0.5'], [0.95, 1.95], rtol=1e-6)
  assert int(new['step']) == 1
  assert float(metrics['gradient_norm']) == 5
  assert float(metrics['loss']) == pytest.approx(0.7)
  assert int(metrics['step']) == 1 and float(metrics['stop']) == 1


def test_losses_by_quartile_are_means_since_the_last_log(network):
  process = process_lib.Diffusion(
      network.diffusion.betas, variance='learned_range'
  )
  step, state, update = make_update(
      network, loss=losses_lib.Loss(process, 'hybrid'), batch_size=8,
      log_every_steps=2,
  )  # fmt: skip
  generator = np.random.default_rng(0)
  losses, quartiles = [], []
  for number in range(4):
    losses.append(generator.random([3, 8]).astype(np.float32))
    packed = step.pack(
        tf.zeros([2]), tf.constant(losses[-1]), tf.constant(0.0)
    )
    state, metrics = update(state, packed)
    keys = noise_level_keys(step, number)
    quartiles.append(step.noise_levels.draw(keys, {}).quartile)
    for i, name in enumerate(('loss', 'mse', 'vb')):
      assert float(metrics[name]) == pytest.approx(losses[-1][i].mean())
      since = slice(number // 2 * 2, None)
      for q in range(4):
        own = np.concatenate(losses[since], 1)[i]
        own = own[np.concatenate(quartiles[since]) == q]
        expected = own.mean() if len(own) else np.nan
        assert float(metrics[f'{name}_q{q}']) == pytest.approx(
            expected, nan_ok=True
        )


@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(
    network, dynamic, bad
):
  # With XLA, which must not take a NaN for a number.
  step, before, update = make_update(
      network, jit_compile=True, loss_scale=adam.LossScale(dynamic),
      clip=adam.Clip(1.0),
  )  # fmt: skip
  packed = step.pack(
      tf.constant([bad, 1.0]), tf.constant([[0.5]]), tf.constant(0.0)
  )
  new, metrics = update(before, packed)
  for name in ('params', 'adam_m', 'adam_v', 'ema'):
    tf.nest.map_structure(
        np.testing.assert_array_equal, new[name], before[name]
    )
  assert int(new['skipped_steps']) == 1 and int(new['step']) == 1
  assert int(metrics['skipped_steps']) == 1
  scale = float(before['loss_scale'])
  assert scale == (2**15 if dynamic else 1)
  assert float(new['loss_scale']) == (scale / 2 if dynamic else scale)


def test_after_too_many_bad_gradients_the_state_is_frozen(network):
  """The step after them may be finite, and must not hide them."""
  step, state, update = make_update(network, max_skipped_steps=1)
  terms, stop = tf.constant([[0.5]]), tf.constant(0.0)
  bad = step.pack(tf.constant([np.nan, 1.0]), terms, stop)
  good = step.pack(tf.constant([1.0, 1.0]), terms, stop)
  state, _ = update(state, bad)
  state, _ = update(state, bad)
  assert int(state['skipped_steps']) == int(state['step']) == 2
  new, metrics = update(state, good)
  tf.nest.map_structure(np.testing.assert_array_equal, new, state)
  assert int(metrics['skipped_steps']) == 2


def test_per_replica_clip_is_hos():
  """Each replica clips its share to 1/N; the sum is not clipped again."""
  clip = {'optimizer.clip': 'per_replica', 'optimizer.clip_norm': 1e-3}
  trainer = make_trainer(2, **WITHOUT_XLA, **clip)
  losses_of(trainer, 1)
  # Two vectors of norm 0.5e-3 sum to at most 1e-3, and are not parallel.
  norm = np.linalg.norm(trainer.state.adam_m.numpy()) / 0.1
  assert 0.5e-3 < norm < 1e-3


def test_a_run_that_diverges_says_so(one_device, monkeypatch):
  blocks = []
  make_blocks = one_device._make_blocks

  def counted(step):
    for block in make_blocks(step):
      blocks.append(block)
      yield block

  monkeypatch.setattr(one_device, '_make_blocks', counted)
  losses_of(one_device, 1)
  one_device.state.params.assign(one_device.state.params * np.nan)
  with pytest.raises(UserError, match="step 2: the loss is nan and the grad"):
    one_device.run_until(1000)
  assert one_device.state.step.numpy() == 2
  # The step after the one that failed may have needed one more.
  assert len(blocks) <= 2


def test_traced_once_whatever_the_number_of_replicas(monkeypatch):
  traces = []
  original = build.make_model

  def build_model(config):
    model = original(config)
    call = model.stateless_call

    def counted(*args, **kwargs):
      traces.append(1)
      return call(*args, **kwargs)

    monkeypatch.setattr(model, 'stateless_call', counted)
    return model

  monkeypatch.setattr(build, 'make_model', build_model)
  losses_of(make_trainer(2, **WITHOUT_XLA), 1)
  assert len(traces) == 1


@pytest.mark.parametrize('steps_per_loop', [1, 4])
def test_one_replica_told_to_stop_stops_all_after_the_same_step(
    steps_per_loop
):
  """The request rides on the all-reduce: every replica hears of it."""
  stop = tf.Variable(0.0)
  loop = {'train.steps_per_loop': steps_per_loop}
  trainer = make_trainer(2, stop, **WITHOUT_XLA, **loop)
  assert trainer.run_until(2)[:2] == (2, False)
  stop.assign(1.0)
  # The loop looks one step late.
  assert trainer.run_until(8)[:2] == (4, True)
  assert trainer.draw() is None


def test_the_loop_goes_on_by_what_the_host_knows(one_device):
  """A condition on a device's value would make the host wait for each step."""
  block = next(one_device._make_blocks(0))
  loop = one_device._loop.run.get_concrete_function(
      block, tf.constant(0), tf.constant(1), one_device._loop.restart()
  )
  (operation,) = [
      op for op in loop.graph.get_operations() if op.type == 'While'
  ]
  library = loop.graph.as_graph_def().library.function
  condition, body = [
      next(f for f in library if f.signature.name == name)
      for name in (operation.get_attr(a).name for a in ('cond', 'body'))
  ]
  for node in [operation.node_def, *condition.node_def]:
    assert node.device.endswith('CPU:0'), node
  # It depends on counters, and on the metrics (two vectors) of a step before.
  names = [a.name for a in condition.signature.input_arg]
  used = {i.split(':')[0] for node in condition.node_def for i in node.input}
  late = [n for n in names if n in used and n.startswith('while_placeholder')]
  assert len(late) == 3 and 'while_placeholder' in late
  late.remove('while_placeholder')  # The loop's counter.
  # The body only reads those: they are not computed from its own step.
  nodes = {node.name: node for node in body.node_def}
  for name in late:
    output = body.signature.output_arg[names.index(name)].name
    sources, needed = [body.ret[output].split(':')[0]], set()
    while sources:
      if (node := nodes.get(sources.pop())) is not None:
        needed.add(node.op)
        data = [i for i in node.input if not i.startswith('^')]
        sources += [i.split(':')[0] for i in data]
    assert needed == {'Identity', 'ReadVariableOp'}


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {
            'diffusion.schedule': 'edm',
            'diffusion.prediction': 'edm',
            'diffusion.timesteps': 'lognormal',
        },
        {'diffusion.prediction': 'v', 'diffusion.loss': 'min_snr'},
        {'diffusion.variance': 'learned_range', 'diffusion.loss': 'hybrid'},
        {'diffusion.timesteps': 'loss_second_moment'},
        {'precision': 'mixed_float16'},
    ],
)
def test_accelerators_need_no_float64_and_keep_the_state(settings):
  """TPUs have no float64; int32 variables stay on the host of a GPU."""
  config = tiny_config(**settings)
  step, specs = step_lib.without_weights(config)
  dtypes = {spec.dtype for spec in tf.nest.flatten(specs)}
  assert dtypes == {tf.float32, tf.int64}
  for function in (
      step_lib.compile_gradient(
          step, specs, replica_batch_size=2, jit_compile=True
      ),
      step_lib.compile_update(step, specs, jit_compile=True),
  ):
    used = {
        tensor.dtype
        for operation in function.graph.get_operations()
        for tensor in operation.outputs
    }
    assert tf.float32 in used and tf.float64 not in used


def test_xla_writes_the_new_state_over_the_old_one(tmp_path):
  """As its compiled program says; else both would be in memory at once."""
  update = '''
import support, tensorflow as tf
from ddpm.training import step as step_lib
step, specs = step_lib.without_weights(support.tiny_config())
state = step.initial_state(tf.zeros([step.layout.size]))
update = step_lib.compile_update(step, specs, jit_compile=True)
update(state.handles(), tf.ones([step.packed_size()]))
print(int(state.step), float(tf.norm(state.adam_m)) > 0)
print(len(tf.nest.flatten(specs)))
'''
  done = subprocess.run(
      [sys.executable, '-c', update],
      cwd=ROOT / 'tests',
      env=os.environ
      | {
          'TF_XLA_FLAGS': '',  # No cache: what is loaded is not dumped.
          'XLA_FLAGS': f'--xla_dump_to={tmp_path} --xla_dump_hlo_as_text',
      },
      stdout=subprocess.PIPE,
      text=True,
      check=True,
  )
  *done, variables = done.stdout.split()
  assert done == ['1', 'True']
  (program,) = tmp_path.glob('*update*before_optimizations.txt')
  aliases = program.read_text().partition('entry_computation_layout')[0]
  assert aliases.count('may-alias') == int(variables)
