"""EMAs against their weights in closed form, and reconstructed afterwards."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ddpm.optim import ema
from ddpm.training import state as state_lib

STEPS = 40


def new_weights(name, steps, rampup_ratio=0.0):
  """Those after steps 0, 1, ..., compiled by XLA as in the trainer."""
  emas = ema.EMAs((0.9,), rampup_ratio=rampup_ratio)

  @tf.function(jit_compile=True, autograph=False)
  def weight(step):
    return emas.weight(name, step)

  return np.array([weight(tf.constant(s, tf.int64)).numpy() for s in steps])


def test_names():
  assert ema.EMAs((0.9999, 0.5), (0.05, 0.10)).names == [
      '0.9999', '0.5', 'power:0.05', 'power:0.1',
  ]  # fmt: skip
  assert ema.EMAs((0.9,)).names == ['0.9']


@pytest.mark.parametrize(
    'args, message',
    [
        ((), 'decays is empty'),
        (((1.0,),), 'decays has 1.0, expected'),
        (((), (0.3,)), "power_stds has 0.3: a power-function EMA's std is"),
        (((0.9,), (), -1), 'rampup_ratio is -1, expected at least 0'),
    ],
)
def test_refuses(args, message):
  with pytest.raises(ValueError, match=message):
    ema.EMAs(*args)


def weights_of(betas):
  """Of the start and the parameters after each step, float64 [n + 1]."""
  later = np.cumprod(np.append(1.0, betas[::-1]))[::-1]
  return later * np.append(1.0, 1.0 - np.array(betas))


def constant_weights(rampup_ratio, n=STEPS, decay=0.9):
  if not rampup_ratio:
    return weights_of(np.full(n, decay))
  # EDM, training_loop.py, with the batch as the unit of images.
  half_lives = [
      min(math.log(0.5) / math.log(decay), step * rampup_ratio)
      for step in range(n)
  ]
  return weights_of([0.5 ** (1 / max(h, 1e-8)) for h in half_lives])


def power_weights(std, n=STEPS):
  """The integrals of the profile over each step; nothing of the start."""
  edges = (np.arange(n + 1) / n) ** (ema.power_exponent(std) + 1)
  return np.append(0.0, np.diff(edges))


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize('rampup_ratio', [0.0, 0.05, 0.5])
def test_emas_are_their_weighted_sums(replicas, rampup_ratio):
  """Of a random path, in the variables and the replicas of a run."""
  path = np.random.default_rng(0).normal(size=[STEPS + 1, 5])
  path = path.astype(np.float32)
  strategy = tf.distribute.MirroredStrategy(
      [f'CPU:{i}' for i in range(replicas)],
      cross_device_ops=tf.distribute.ReductionToOneDevice(),
  )
  emas = ema.EMAs((0.9, 0.0), (0.05, 0.2), rampup_ratio)
  with strategy.scope():
    state = state_lib.State(
        tf.constant(path[0]),
        ema_names=emas.names,
    )

  @tf.function(autograph=False)
  def step(params):
    new = emas.update(state.read()['ema'], params, state.step)
    tf.nest.map_structure(lambda v, x: v.assign(x), state.ema, new)
    state.step.assign(state.step + 1)

  for params in path[1:]:
    strategy.run(step, args=(tf.constant(params),))
  expected = {
      '0.9': constant_weights(rampup_ratio) @ path,
      '0.0': path[-1],
      'power:0.05': power_weights(0.05) @ path,
      'power:0.2': power_weights(0.2) @ path,
  }
  for name, variable in state.ema.items():
    for copy in strategy.experimental_local_results(variable):
      np.testing.assert_allclose(copy, expected[name], rtol=1e-5, atol=1e-6)


def test_the_weight_of_a_decay_is_that_of_float64_rounded_once():
  for decay in (0.9999, 0.995, 0.0):
    weight = ema.EMAs((decay,)).weight(str(decay), tf.constant(7))
    assert weight.numpy() == np.float32(1.0 - decay)
  # What float32 would make of it.
  assert 1 - np.float32(0.9999) != np.float32(1.0 - 0.9999)


def test_the_ramp_ends_at_the_decay():
  # A half-life of 6931 steps, 5 % of 138,626.
  before, after = new_weights('0.9999', [138_000, 139_000], rampup_ratio=0.05)
  assert before > after == np.float32(1.0 - 0.9999)


@pytest.mark.parametrize('std', [0.01, 0.05, 0.2])
def test_power_weights_are_precise_at_any_step(std):
  t = np.array([1, 2, 3, 10, 1000, 10**6, 10**8])
  with np.errstate(divide='ignore'):
    expected = -np.expm1((ema.power_exponent(std) + 1) * np.log1p(-1 / t))
  np.testing.assert_allclose(
      new_weights(f'power:{std}', t - 1), expected, rtol=1e-6
  )


@pytest.mark.parametrize('std', [0.01, 0.05, 0.1, 0.25, 0.289])
def test_std_is_the_width_of_the_profile(std):
  n = 100_000
  weights = power_weights(std, n)[1:]
  assert weights.sum() == pytest.approx(1)
  t = (np.arange(n) + 0.5) / n
  variance = weights @ t**2 - (weights @ t) ** 2
  assert np.sqrt(variance) == pytest.approx(std, rel=1e-5)


@pytest.mark.parametrize('std', [0.0, -0.1, 0.29, math.nan])
def test_a_std_out_of_range(std):
  with pytest.raises(ValueError, match=f'{std}, expected 0 to 0.29'):
    ema.power_exponent(std)


@pytest.fixture(scope='module')
def training():
  """2000 steps of a random walk: emas, by width and step."""
  rng = np.random.default_rng(0)
  stds = (0.05, 0.10, 0.07, 0.15)
  params = 3 * rng.normal(size=500)
  emas = dict.fromkeys(stds, params)
  weights = {std: new_weights(f'power:{std}', range(2000)) for std in stds}
  saved = {}
  for step in range(2000):
    params = params + 0.01 * rng.normal(size=500)
    for std in stds:
      weight = weights[std][step]
      emas[std] = (1 - weight) * emas[std] + weight * params
      saved[std, step + 1] = emas[std].astype(np.float32)
    saved['raw', step + 1] = params
  return saved


@pytest.mark.parametrize('step', [1000, 2000])
@pytest.mark.parametrize('std', [0.07, 0.15])
def test_what_is_rebuilt_is_what_was_tracked(training, std, step):
  keys = [(s, t) for t in range(100, step + 1, 100) for s in (0.05, 0.10)]
  stds, steps = zip(*keys)
  coefficients = ema.posthoc_coefficients(steps, stds, step, std)
  rebuilt = coefficients @ np.stack([training[key] for key in keys])
  expected = training[std, step]
  error = np.linalg.norm(rebuilt - expected) / np.linalg.norm(expected)
  assert error < 1e-3
  # And not because all emas are much the same: in what is their own.
  raw = training['raw', step]
  correlation = np.corrcoef(rebuilt - raw, expected - raw)[0, 1]
  assert correlation > 0.99
  nearest = min(
      np.linalg.norm(training[other, step] - expected) for other in (0.05, 0.10)
  )
  assert np.linalg.norm(rebuilt - expected) < nearest / 50


def test_coefficients_of_a_snapshot_are_itself():
  coefficients = ema.posthoc_coefficients(
      [50, 50, 100, 100], [0.05, 0.1] * 2, 100, 0.05
  )
  np.testing.assert_allclose(coefficients, [0, 0, 1, 0], atol=1e-9)


def test_snapshots_of_one_profile_share_its_coefficient():
  coefficients = ema.posthoc_coefficients(
      [50, 100, 100], [0.1] * 3, 100, 0.1
  )
  np.testing.assert_allclose(coefficients, [0, 0.5, 0.5], atol=1e-9)


def test_coefficients_are_the_least_squares_of_the_profiles():
  """On a fine grid of time, instead of the integrals in closed form."""
  steps, stds, n = [300, 600, 1000, 1000], [0.1, 0.05, 0.1, 0.2], 100_000
  time = (np.arange(n) + 0.5) / n * 1000

  def profile(t, std):
    gamma = ema.power_exponent(std)
    return np.where(time < t, (gamma + 1) * (time / t) ** gamma / t, 0)

  snapshots = np.stack([profile(t, std) for t, std in zip(steps, stds)], 1)
  for step, std in ((1000, 0.07), (800, 0.15)):
    expected = np.linalg.lstsq(snapshots, profile(step, std))[0]
    np.testing.assert_allclose(
        ema.posthoc_coefficients(steps, stds, step, std),
        expected / expected.sum(),
        atol=1e-4,
    )
