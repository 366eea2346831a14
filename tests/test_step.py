"""The step: pure, the same on any number of replicas, traced once."""

from conftest import tiny_config
import numpy as np
import pytest
import tensorflow as tf

from ddpm import config as config_lib
from ddpm import optimizer
from ddpm import state as state_lib
from ddpm import step as step_lib
from ddpm import train
from ddpm.errors import UserError


def strategy_of(replicas):
  if replicas == 1:
    return tf.distribute.OneDeviceStrategy('CPU:0')
  # Collectives of several sizes do not live together in one process;
  # test_main.py runs them as they are, one to a process.
  return tf.distribute.MirroredStrategy(
      [f'CPU:{i}' for i in range(replicas)],
      cross_device_ops=tf.distribute.ReductionToOneDevice(),
  )


def run(replicas, steps, **overrides):
  """Losses of some steps, and the trainer after them."""
  config = tiny_config()
  with config.unlocked():
    config.update_from_flattened_dict(overrides)
  trainer = train.Trainer(config, strategy_of(replicas))
  blocks = trainer.blocks(0)
  losses = []
  for step in range(steps):
    if step % config.train.steps_per_loop == 0:
      block = next(blocks)
    done, stopped, metrics = trainer.run(
        block, step % config.train.steps_per_loop, 1
    )
    assert (done, stopped) == (step + 1, False)
    losses.append(metrics['loss'])
  return np.array(losses), trainer


@pytest.fixture(scope='module')
def one_device():
  return run(1, 6)


def test_replicas_follow_the_trajectory_of_one(one_device):
  losses, trainer = run(2, 6)
  np.testing.assert_allclose(losses[0], one_device[0][0], rtol=1e-5)
  np.testing.assert_allclose(losses, one_device[0], rtol=1e-4)
  for copy in trainer.state.params.values:
    np.testing.assert_array_equal(copy, trainer.state.params.values[0])


@pytest.mark.parametrize(
    'overrides, tolerance',
    [
        ({'jit_compile': False}, 1e-5),
        ({'precision': 'mixed_bfloat16'}, 2e-2),
        ({'precision': 'mixed_float16'}, 5e-3),
    ],
)
def test_jit_and_precision_change_only_the_rounding(
    one_device, overrides, tolerance
):
  losses, _ = run(1, 3, **overrides)
  np.testing.assert_allclose(losses, one_device[0][:3], rtol=tolerance)
  if 'precision' in overrides:
    assert np.any(losses != one_device[0][:3])


def test_steps_in_one_call_are_steps_one_by_one(one_device):
  config = tiny_config()
  trainer = train.Trainer(config, strategy_of(1))
  blocks = trainer.blocks(0)
  losses = [trainer.run(next(blocks), 0, 2)[2]['loss'] for _ in range(3)]
  np.testing.assert_array_equal(losses, one_device[0][1::2])
  assert trainer.state.step.numpy() == 6


def test_the_whole_loop_compiles_as_a_tpu_would_have_it(one_device):
  """XLA takes the multi-step function whole: all shapes static, no host op."""
  config = tiny_config()
  trainer = train.Trainer(config, strategy_of(1))
  loop = tf.function(trainer._loop.python_function, jit_compile=True,
                     autograph=False)  # fmt: skip
  metrics = loop(next(trainer.blocks(0)), tf.constant(0), tf.constant(2))
  np.testing.assert_allclose(metrics['loss'], one_device[0][1], rtol=1e-5)


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
      Spy(), network.layout, network.diffusion, seed=0, batch_size=4,
      replica_batch_size=4, random_flip=False, dropout=False,
      jit_compile=False,
  )  # fmt: skip
  packed = gradient(
      network.params, tf.constant(1.0), tf.constant(3, tf.int64),
      tf.constant(0.0), tf.zeros([4, 8, 8, 1], tf.uint8),
      tf.zeros([4], tf.int32), tf.range(4, dtype=tf.int64),
  )  # fmt: skip
  # The noise's mean square, for an output of zero.
  assert float(packed[-2]) == pytest.approx(1, abs=0.25)
  np.testing.assert_array_equal(packed[:-2], 0)


def gradient_of(network, **kwargs):
  settings = {
      'seed': 0, 'batch_size': 4, 'replica_batch_size': 4,
      'random_flip': True, 'dropout': True, 'jit_compile': False,
  } | kwargs  # fmt: skip
  function = step_lib.gradient_function(
      network.model, network.layout, network.diffusion, **settings
  )
  b = settings['replica_batch_size']
  images = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 1], np.uint8)

  def call(step=3, start=0, loss_scale=1.0, stop=0.0):
    return function(
        network.params, tf.constant(loss_scale), tf.constant(step, tf.int64),
        tf.constant(stop), images[start : start + b], np.zeros([b], np.int32),
        np.arange(start, start + b, dtype=np.int64),
    ).numpy()  # fmt: skip

  return call


def test_shares_of_replicas_sum_to_the_whole(network):
  whole = gradient_of(network)()
  half = gradient_of(network, replica_batch_size=2)
  np.testing.assert_allclose(half(start=0) + half(start=2), whole, atol=2e-6)
  assert np.linalg.norm(whole) > 0.1


def test_gradient_depends_on_seed_and_step_and_not_on_the_loss_scale(network):
  call = gradient_of(network)
  np.testing.assert_array_equal(call(), call())
  np.testing.assert_allclose(call(loss_scale=1024.0), call(), atol=1e-6)
  assert np.abs(call(step=4) - call()).max() > 1e-3
  assert np.abs(gradient_of(network, seed=1)() - call()).max() > 1e-3


def test_gradient_is_the_slope_of_the_loss(network):
  call = gradient_of(network)
  packed = call()
  gradient = packed[:-2]
  direction = gradient / np.linalg.norm(gradient)
  params, losses = network.params, []
  for step in (-1e-2, 1e-2):
    network.params = params + step * direction
    losses.append(call()[-2])
  network.params = params
  slope = (losses[1] - losses[0]) / 2e-2
  assert slope == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def update_of(state, **kwargs):
  settings = {
      'rate': lambda step: tf.constant(0.1), 'beta1': 0.9, 'beta2': 0.99,
      'epsilon': 1e-8, 'clip_norm': 0.0, 'use_loss_scale': False,
      'jit_compile': False,
  } | kwargs  # fmt: skip
  return step_lib.update_function(state, **settings)


def test_update_moves_every_part_of_the_state():
  state = state_lib.State(
      tf.constant([1.0, 2.0]), ema_decays=(0.9, 0.5), use_loss_scale=False
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


@pytest.mark.parametrize('use_loss_scale', [False, True])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(use_loss_scale, bad):
  state = state_lib.State(
      tf.constant([1.0, 2.0]), ema_decays=(0.9,), use_loss_scale=use_loss_scale
  )
  before = state.read()
  update = update_of(state, use_loss_scale=use_loss_scale, clip_norm=1.0)
  new, metrics = update(before, tf.constant([bad, 1.0, 0.5, 0.0]))
  for name in ('params', 'adam_m', 'adam_v', 'ema'):
    tf.nest.map_structure(
        np.testing.assert_array_equal, new[name], before[name]
    )
  assert int(new['skipped_steps']) == 1 and int(new['step']) == 1
  assert int(metrics['skipped_steps']) == 1
  scale = optimizer.INITIAL_LOSS_SCALE / 2 if use_loss_scale else 1
  assert float(new['loss_scale']) == scale


def test_per_replica_clip_is_hos():
  """Each replica clips its share to 1/N; the sum is not clipped again."""
  clip = {'optimizer.clip': 'per_replica', 'optimizer.clip_norm': 1e-3}
  _, trainer = run(2, 1, **clip)
  # Two vectors of norm 0.5e-3 sum to at most 1e-3, and are not parallel.
  norm = np.linalg.norm(trainer.state.adam_m.numpy()) / 0.1
  assert 0.5e-3 < norm < 1e-3


def test_a_run_that_diverges_says_so():
  _, trainer = run(1, 1)
  trainer.state.params.assign(trainer.state.params * np.nan)
  with pytest.raises(UserError, match="step 2: the loss is nan and the grad"):
    trainer.run(next(trainer.blocks(0)), 0, 2)


def test_traced_once_whatever_the_number_of_replicas(monkeypatch):
  traces = []
  original = config_lib.build_model

  def build_model(config):
    model = original(config)
    call = model.stateless_call

    def counted(*args, **kwargs):
      traces.append(1)
      return call(*args, **kwargs)

    monkeypatch.setattr(model, 'stateless_call', counted)
    return model

  monkeypatch.setattr(config_lib, 'build_model', build_model)
  run(2, 1)
  assert len(traces) == 1


def test_one_replica_told_to_stop_stops_all_after_the_same_step():
  """The request rides on the all-reduce: every replica hears of it."""
  stop = tf.Variable(0.0)
  trainer = train.Trainer(tiny_config(), strategy_of(2), stop)
  blocks = trainer.blocks(0)
  assert trainer.run(next(blocks), 0, 2)[:2] == (2, False)
  stop.assign(1.0)
  assert trainer.run(next(blocks), 0, 2)[:2] == (3, True)
  assert trainer.draw() is None
