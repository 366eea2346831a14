"""The step: pure, the same on any number of replicas, traced once."""

import numpy as np
import pytest
from support import tiny_config
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import noise_levels
from ddpm.diffusion import process as process_lib
from ddpm.optim import adam
from ddpm.run import build
from ddpm.runtime.errors import UserError
from ddpm.training import state as state_lib
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
  blocks = trainer.blocks(0)
  losses = []
  for step in range(steps):
    if step % 2 == 0:  # train.steps_per_loop
      block = next(blocks)
    done, stopped, metrics = trainer.run(block, step % 2, 1)
    assert (done, stopped) == (step + 1, False)
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


@pytest.mark.parametrize('settings, steps', [(LEARNED, 12), (EDM, 3)])
def test_what_successors_add_follows_the_trajectory_of_one(settings, steps):
  """The memory of losses, classes, averages: on two replicas, in parts."""
  one = make_trainer(1, **WITHOUT_XLA, **settings)
  parts = {'train.accumulation_steps': 2, 'train.remat': True}
  two = make_trainer(2, **WITHOUT_XLA, **settings, **parts)
  losses = losses_of(one, steps)
  np.testing.assert_allclose(losses_of(two, steps), losses, rtol=1e-3)
  assert losses[-1] < losses[0]
  if settings is LEARNED:
    # Warm: the choice of timesteps follows the losses.
    assert tf.reduce_min(one.state.memory['counts']) >= 10
    np.testing.assert_array_equal(
        one.state.memory['counts'], two.state.memory['counts']
    )
  images = one.draw()
  assert images.shape == (64, 28, 28, 1) and images.std() > 10


@pytest.mark.parametrize(
    'overrides, tolerance',
    [
        (WITHOUT_XLA, 1e-5),
        ({'precision': 'mixed_bfloat16'}, 2e-2),
        ({'precision': 'mixed_float16'}, 5e-3),
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
  blocks = one_device.blocks(0)
  losses = [one_device.run(next(blocks), 0, 2)[2]['loss'] for _ in range(3)]
  np.testing.assert_array_equal(losses, expected[1::2])
  assert one_device.state.step.numpy() == 6


def test_the_whole_loop_compiles_as_a_tpu_would_have_it(one_device, expected):
  """XLA takes the multi-step function whole: all shapes static, no host op."""
  loop = tf.function(one_device._loop.python_function, jit_compile=True,
                     autograph=False)  # fmt: skip
  metrics = loop(next(one_device.blocks(0)), tf.constant(0), tf.constant(2))
  np.testing.assert_allclose(metrics['loss'], expected[1], rtol=1e-5)


def test_loss_is_the_papers(network):
  """L_simple by hand, from the step's own timesteps and noise."""
  seen = {}

  class Spy:
    image_shape = (8, 8, 1)
    num_classes = 0

    def stateless_call(self, weights, _, x, t, labels, dropout_keys):
      seen.update(x=x, t=t)
      return tf.zeros_like(x) + 0 * tf.reduce_sum(weights[0]), []

  gradient = step_lib.gradient_function(
      Spy(), network.layout, network.diffusion, noise_levels.Uniform(20),
      seed=0, batch_size=4, replica_batch_size=4, random_flip=False,
      dropout=False,
      jit_compile=False,
  )  # fmt: skip
  packed = gradient(
      network.params, tf.constant(1.0), tf.constant(3, tf.int64),
      tf.constant(0.0), {}, tf.zeros([4, 8, 8, 1], tf.uint8),
      tf.zeros([4], tf.int32), tf.range(4, dtype=tf.int64),
  )  # fmt: skip
  weights, losses, _ = step_lib.unpack(packed, network.layout.size, 4)
  # The noise's mean square, for an output of zero.
  np.testing.assert_allclose(losses, np.ones([1, 4]), atol=0.5)
  assert np.mean(losses) == pytest.approx(1, abs=0.25)
  np.testing.assert_array_equal(weights, 0)


def gradient_of(network, choice=None, memory=None, **kwargs):
  """A function that computes gradient [P], then losses [4], then stop."""
  choice = choice or noise_levels.Uniform(20)
  settings = {
      'seed': 0, 'batch_size': 4, 'replica_batch_size': 4,
      'random_flip': True, 'dropout': True, 'jit_compile': False,
  } | kwargs  # fmt: skip
  function = step_lib.gradient_function(
      network.model, network.layout, network.diffusion, choice, **settings
  )
  memory = choice.initial() if memory is None else memory
  b = settings['replica_batch_size']
  images = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 1], np.uint8)

  def call(step=3, start=0, loss_scale=1.0, stop=0.0):
    return function(
        network.params, tf.constant(loss_scale), tf.constant(step, tf.int64),
        tf.constant(stop), memory, images[start : start + b],
        np.zeros([b], np.int32),
        np.arange(start, start + b, dtype=np.int64),
    ).numpy()  # fmt: skip

  return call


@pytest.fixture(scope='module')
def gradient(network):
  return gradient_of(network)


def test_shares_of_replicas_sum_to_the_whole(network, gradient):
  whole = gradient()
  half = gradient_of(network, replica_batch_size=2)
  np.testing.assert_allclose(half(start=0) + half(start=2), whole, atol=2e-6)
  # Each replica knows the losses of its own images.
  np.testing.assert_array_equal(half(start=2)[-5:-3], 0)
  assert np.linalg.norm(whole) > 0.1


@pytest.mark.parametrize('jit_compile', [False, True])
def test_accumulated_parts_are_the_large_batch(
    network, gradient, jit_compile
):
  parts = gradient_of(
      network, accumulation_steps=2, jit_compile=jit_compile
  )
  whole = gradient()
  np.testing.assert_allclose(parts(), whole, atol=1e-5 * np.abs(whole).max())


def test_a_rare_timestep_weighs_more(network):
  """The gradient is of the weighted mean; the losses are as they are."""
  choice = noise_levels.LossSecondMoment(20)
  memory = {
      'losses': tf.repeat(tf.range(1.0, 21.0)[:, None], 10, axis=1),
      'counts': tf.fill([20], 10),
  }
  losses = gradient_of(network, choice, memory)()[-5:-1]
  keys = step_lib.example_keys(0, 3, tf.range(4, dtype=tf.int64))
  t, weight, _ = choice.draw(rng.fold_in(keys, 0), memory)
  p = np.arange(1, 21) / 210 * 0.999 + 0.001 / 20
  np.testing.assert_allclose(weight, 1 / (20 * p[t]), rtol=1e-5)

  state = state_lib.State(
      network.params, ema_names=(), use_loss_scale=False, memory=memory
  )
  update = update_of(state, choice, batch_size=4)
  packed = tf.concat([tf.zeros_like(network.params), losses, [0.0]], 0)
  tensors = state.read() | {'step': tf.constant(3, tf.int64)}
  new, metrics = update(tensors, packed)
  expected = np.mean(losses * weight)
  assert float(metrics['loss']) == pytest.approx(expected, rel=1e-5)
  assert int(tf.reduce_sum(new['memory']['counts'])) == 204
  kept = [loss in new['memory']['losses'][i] for i, loss in zip(t, losses)]
  assert all(kept)


def test_label_dropout_withholds_classes(network):
  seen = []

  class Spy:
    image_shape = (8, 8, 1)
    num_classes = 3

    def stateless_call(self, weights, _, x, t, labels, dropout_keys):
      seen.append(labels)
      tf.debugging.assert_equal(tf.shape(labels), [256])
      # The labels, as the losses show them.
      output = tf.cast(labels, tf.float32)[:, None, None, None]
      return output * tf.ones_like(x) + 0 * tf.reduce_sum(weights[0]), []

  process = process_lib.Diffusion(network.diffusion.betas, prediction='x0')
  gradient = step_lib.gradient_function(
      Spy(), network.layout, process, noise_levels.Uniform(20), seed=0,
      batch_size=256, replica_batch_size=256, random_flip=False, dropout=False,
      jit_compile=False, label_dropout=0.25,
  )  # fmt: skip
  packed = gradient(
      network.params, tf.constant(1.0), tf.constant(3, tf.int64),
      tf.constant(0.0), {}, tf.fill([256, 8, 8, 1], np.uint8(255)),
      tf.range(256) % 3, tf.range(256, dtype=tf.int64),
  )  # fmt: skip
  _, losses, _ = step_lib.unpack(packed, network.layout.size, 256)
  labels = np.sqrt(losses[0])  # |label - 1|
  dropped = labels == 2  # the null class, 3
  assert 0.15 < dropped.mean() < 0.35
  np.testing.assert_array_equal(
      labels[~dropped], np.abs(np.arange(256) % 3 - 1.0)[~dropped]
  )


def test_gradient_depends_on_seed_and_step_and_not_on_the_loss_scale(
    network, gradient
):
  whole = gradient()
  np.testing.assert_array_equal(gradient(), whole)
  np.testing.assert_allclose(gradient(loss_scale=1024.0), whole, atol=1e-6)
  assert np.abs(gradient(step=4) - whole).max() > 1e-3
  assert np.abs(gradient_of(network, seed=1)() - whole).max() > 1e-3


def test_gradient_is_the_slope_of_the_loss(network, gradient, monkeypatch):
  whole = gradient()[:-5]
  direction = whole / np.linalg.norm(whole)
  params, losses = network.params, []
  for step in (-1e-2, 1e-2):
    monkeypatch.setattr(network, 'params', params + step * direction)
    losses.append(gradient()[-5:-1].mean())
  slope = (losses[1] - losses[0]) / 2e-2
  assert slope == pytest.approx(np.linalg.norm(whole), rel=1e-2)


def update_of(state, choice=None, **kwargs):
  settings = {
      'seed': 0, 'batch_size': 1,
      'rate': lambda step: tf.constant(0.1), 'beta1': 0.9, 'beta2': 0.99,
      'epsilon': 1e-8, 'clip_norm': 0.0, 'use_loss_scale': False,
      'jit_compile': False,
  } | kwargs  # fmt: skip
  choice = choice or noise_levels.Uniform(20)
  return step_lib.update_function(state, choice, **settings)


def test_update_moves_every_part_of_the_state():
  state = state_lib.State(
      tf.constant([1.0, 2.0]), ema_names=('0.9', '0.5'), use_loss_scale=False
  )
  packed = tf.constant([3.0, 4.0, 0.7, 1.0])
  new, metrics = update_of(state)(state.read(), packed)
  np.testing.assert_allclose(new['params'], [0.9, 1.9], rtol=1e-6)
  np.testing.assert_allclose(new['adam_m'], [0.3, 0.4], rtol=1e-5)
  np.testing.assert_allclose(new['adam_v'], [0.09, 0.16], rtol=1e-4)
  np.testing.assert_allclose(new['ema']['0.9'], [0.99, 1.99], rtol=1e-6)
  np.testing.assert_allclose(new['ema']['0.5'], [0.95, 1.95], rtol=1e-6)
  assert int(new['step']) == 1
  assert float(metrics['gradient_norm']) == 5
  assert float(metrics['loss']) == pytest.approx(0.7)
  assert int(metrics['step']) == 1 and float(metrics['stop']) == 1


def test_losses_by_quartile_are_means_since_the_last_log():
  state = state_lib.State(
      tf.zeros([1]), ema_names=(), use_loss_scale=False, num_terms=3
  )
  update = update_of(state, batch_size=8, loss='hybrid', log_every_steps=2)
  choice, tensors = noise_levels.Uniform(20), state.read()
  generator = np.random.default_rng(0)
  losses, quartiles = [], []
  for step in range(4):
    losses.append(generator.random([3, 8]).astype(np.float32))
    packed = np.concatenate([[0.0], losses[-1].ravel(), [0.0]])
    tensors, metrics = update(tensors, tf.constant(packed, tf.float32))
    keys = step_lib.example_keys(0, step, tf.range(8, dtype=tf.int64))
    quartiles.append(choice.draw(rng.fold_in(keys, 0), {}).quartile)
    for i, name in enumerate(('loss', 'mse', 'vb')):
      assert float(metrics[name]) == pytest.approx(losses[-1][i].mean())
      since = slice(step // 2 * 2, None)
      for q in range(4):
        own = np.concatenate(losses[since], 1)[i]
        own = own[np.concatenate(quartiles[since]) == q]
        expected = own.mean() if len(own) else np.nan
        assert float(metrics[f'{name}_q{q}']) == pytest.approx(
            expected, nan_ok=True
        )


@pytest.mark.parametrize('use_loss_scale', [False, True])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(use_loss_scale, bad):
  state = state_lib.State(
      tf.constant([1.0, 2.0]), ema_names=('0.9',), use_loss_scale=use_loss_scale
  )
  before = state.read()
  # With XLA, which must not take a NaN for a number.
  update = update_of(
      state, use_loss_scale=use_loss_scale, clip_norm=1.0, jit_compile=True
  )
  new, metrics = update(before, tf.constant([bad, 1.0, 0.5, 0.0]))
  for name in ('params', 'adam_m', 'adam_v', 'ema'):
    tf.nest.map_structure(
        np.testing.assert_array_equal, new[name], before[name]
    )
  assert int(new['skipped_steps']) == 1 and int(new['step']) == 1
  assert int(metrics['skipped_steps']) == 1
  scale = adam.INITIAL_LOSS_SCALE / 2 if use_loss_scale else 1
  assert float(new['loss_scale']) == scale


def test_per_replica_clip_is_hos():
  """Each replica clips its share to 1/N; the sum is not clipped again."""
  clip = {'optimizer.clip': 'per_replica', 'optimizer.clip_norm': 1e-3}
  trainer = make_trainer(2, **WITHOUT_XLA, **clip)
  losses_of(trainer, 1)
  # Two vectors of norm 0.5e-3 sum to at most 1e-3, and are not parallel.
  norm = np.linalg.norm(trainer.state.adam_m.numpy()) / 0.1
  assert 0.5e-3 < norm < 1e-3


def test_a_run_that_diverges_says_so(one_device):
  losses_of(one_device, 1)
  one_device.state.params.assign(one_device.state.params * np.nan)
  with pytest.raises(UserError, match="step 2: the loss is nan and the grad"):
    one_device.run(next(one_device.blocks(0)), 0, 2)


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


def test_one_replica_told_to_stop_stops_all_after_the_same_step():
  """The request rides on the all-reduce: every replica hears of it."""
  stop = tf.Variable(0.0)
  trainer = make_trainer(2, stop, **WITHOUT_XLA)
  blocks = trainer.blocks(0)
  assert trainer.run(next(blocks), 0, 2)[:2] == (2, False)
  stop.assign(1.0)
  assert trainer.run(next(blocks), 0, 2)[:2] == (3, True)
  assert trainer.draw() is None
