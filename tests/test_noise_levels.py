"""The choice of noise levels, against NumPy written from the papers."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import noise_levels

KEYS = rng.fold_in(rng.key(0), tf.range(40_000))


def test_uniform():
  t, weight, quartile = noise_levels.Uniform(8).draw(KEYS, {})
  counts = np.bincount(t, minlength=8)
  assert np.abs(counts / 5000 - 1).max() < 0.06
  np.testing.assert_array_equal(weight, 1)
  np.testing.assert_array_equal(quartile, t.numpy() // 2)


def test_lognormal_is_edms():
  t, weight, quartile = noise_levels.LogNormal(-1.2, 1.2).draw(KEYS, {})
  log_sigma = np.log(t)
  assert log_sigma.mean() == pytest.approx(-1.2, abs=0.02)
  assert log_sigma.std() == pytest.approx(1.2, abs=0.02)
  np.testing.assert_array_equal(weight, 1)
  assert np.abs(np.bincount(quartile) / 10_000 - 1).max() < 0.05
  # The quartiles of a normal distribution lie at -0.6745, 0 and 0.6745.
  z = (log_sigma + 1.2) / 1.2
  expected = np.digitize(z, [-0.67449, 0, 0.67449])
  clear = np.abs(np.abs(z) - 0.67449) > 1e-4
  np.testing.assert_array_equal(quartile[clear], expected[clear])


class Oracle:
  """LossSecondMomentResampler of Nichol and Dhariwal's code, one by one."""

  def __init__(self, num_timesteps):
    self.losses = [collections.deque(maxlen=10) for _ in range(num_timesteps)]

  def remember(self, t, losses):
    for i, loss in zip(t, losses):
      self.losses[i].append(loss)

  def probabilities(self):
    n = len(self.losses)
    if any(len(kept) < 10 for kept in self.losses):
      return np.full(n, 1 / n)
    w = np.array([np.sqrt(np.mean(np.square(kept))) for kept in self.losses])
    return w / w.sum() * 0.999 + 0.001 / n


def test_loss_second_moment_is_equation_18():
  resampler = noise_levels.LossSecondMoment(5)
  update = tf.function(resampler.update_history, jit_compile=True)
  oracle, history = Oracle(5), resampler.initial_history()
  generator = np.random.default_rng(0)
  was_even = []
  for i in range(40):
    # At first t = 4 is rare; later more than 10 of one come in a batch.
    t = generator.integers(0, 5 if i % 4 == 0 else 4, 24).astype(np.int32)
    if i > 30:
      t = np.minimum(t, 1)
    losses = (generator.random(24) * (1 + t) ** 2).astype(np.float32)
    history = update(history, t, losses)
    oracle.remember(t, losses)
    np.testing.assert_allclose(
        resampler.probabilities(history), oracle.probabilities(), rtol=1e-5
    )
    was_even.append(len({*oracle.probabilities()}) == 1)
  assert was_even[0] and not was_even[-1]

  p = oracle.probabilities()
  t, weight, quartile = resampler.draw(KEYS, history)
  np.testing.assert_allclose(np.bincount(t) / 40_000, p, atol=0.01)
  np.testing.assert_allclose(weight, 1 / (5 * p[t]), rtol=1e-4)
  np.testing.assert_array_equal(quartile, 4 * t.numpy() // 5)
  # The weights undo the choice: the mean of anything is the even one.
  f = np.array([3.0, 1, 4, 1, 5])
  assert np.mean(f[t] * weight) == pytest.approx(f.mean(), rel=0.03)
