"""The bound against NumPy."""

import numpy as np
from oracles import variational_bound as oracle
import pytest
import tensorflow as tf

from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion import variational_bound

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


@pytest.mark.parametrize('variance', process_lib.VARIANCES)
def test_variational_bound(variance):
  process = process_lib.Diffusion(
      LINEAR[::50], prediction='x0', variance=variance
  )
  rng = np.random.default_rng(0)
  levels = rng.integers(0, 256, [1, 6, 6, 1])
  levels[0, 0] = 0
  levels[0, 1] = 255
  x0 = levels / 127.5 - 1
  xt = rng.normal(size=[20, 6, 6, 1])
  # Some estimates are beyond [-1, 1], and are clipped.
  estimate = x0[0] + 0.005 * rng.normal(size=[20, 6, 6, 1])
  share = rng.uniform(-1.2, 1.2, size=estimate.shape)
  expected = oracle.terms(
      process, x0[0], xt, estimate.clip(-1, 1), variance, share
  )
  output = estimate
  if variance == 'learned_range':
    output = np.concatenate([estimate, share], axis=-1)

  t = tf.range(20)
  batch = tf.constant(np.repeat(x0, 20, axis=0), tf.float32)
  output, share = process.split(tf.constant(output, tf.float32))
  terms = variational_bound.bound_term(
      process, batch, tf.constant(xt, tf.float32), t,
      tf.clip_by_value(output, -1, 1), share,
  )  # fmt: skip
  prior = variational_bound.prior_term(process, batch[:1])
  np.testing.assert_allclose(prior, expected[:1], rtol=1e-3)
  np.testing.assert_allclose(terms[1:], expected[2:], rtol=2e-3, atol=1e-6)
  # Page's approximation is good to 1e-3, and worse where little is left.
  assert float(terms[0]) == pytest.approx(expected[1], rel=1e-2)


def test_a_perfect_estimate_costs_the_prior_and_the_last_step():
  """With the posterior's own variance the model is the posterior."""
  process = process_lib.Diffusion(
      LINEAR[::50], prediction='x0', variance='fixedsmall'
  )
  x0 = tf.fill([20, 4, 4, 1], 3 / 127.5 - 1)
  xt = tf.random.stateless_normal(x0.shape, (0, 0))
  terms = variational_bound.bound_term(process, x0, xt, tf.range(20), x0)
  np.testing.assert_allclose(terms[1:], 0, atol=1e-6)
  assert terms[0] > 0
