"""The formulas of Ho et al. 2020, written again, and their probabilities."""

import numpy as np
import pytest
import tensorflow as tf

from ddpm import diffusion

LINEAR = diffusion.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


def test_linear_schedule():
  assert LINEAR.dtype == np.float64
  assert LINEAR[0] == 1e-4 and LINEAR[-1] == 0.02
  # Section 4: the last step is nearly pure noise, about 1e-5 nats from it.
  abar = np.prod([1 - b for b in LINEAR])
  assert diffusion.Diffusion(LINEAR).alphas_cumprod[-1] == pytest.approx(abar)
  assert abar == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_schedule():
  betas = diffusion.betas_for('cosine', 50, beta_start=0, beta_end=0)

  def f(t):
    return np.cos((t / 50 + 0.008) / 1.008 * np.pi / 2) ** 2

  expected = [min(1 - f(t + 1) / f(t), 0.999) for t in range(50)]
  np.testing.assert_allclose(betas, expected, rtol=1e-12)
  assert betas[-1] == 0.999


def test_q_sample_is_a_chain_of_single_steps():
  """Equation 4 from equation 2: means and variances of t + 1 steps."""
  process = diffusion.Diffusion(LINEAR)
  mean, variance = 1.0, 0.0
  for beta in LINEAR[:300]:
    mean *= np.sqrt(1 - beta)
    variance = (1 - beta) * variance + beta
  t = tf.constant([299, 299])
  noise = tf.constant([0.0, 1.0])[:, None, None, None]
  xt = process.q_sample(tf.ones([2, 1, 1, 1]), t, noise).numpy().ravel()
  assert xt[0] == pytest.approx(mean, rel=1e-6)
  assert xt[1] - xt[0] == pytest.approx(np.sqrt(variance), rel=1e-5)


def test_posterior_is_bayes_rule():
  """Equations 6 and 7 against the product of two Gaussians."""
  process = diffusion.Diffusion(LINEAR)
  t = np.array([1, 10, 500, 999])
  posterior = process.posterior(t, t - 1)
  abar = np.cumprod(1 - LINEAR)
  for i, n in enumerate(t):
    # Prior x_s ~ N(sqrt(abar_s) x_0, 1 - abar_s); x_t given x_s.
    precision = 1 / (1 - abar[n - 1]) + (1 - LINEAR[n]) / LINEAR[n]
    assert posterior['variance'][i] == pytest.approx(1 / precision)
    x0 = np.sqrt(abar[n - 1]) / (1 - abar[n - 1]) / precision
    xt = np.sqrt(1 - LINEAR[n]) / LINEAR[n] / precision
    assert posterior['coef_x0'][i] == pytest.approx(x0)
    assert posterior['coef_xt'][i] == pytest.approx(xt)
    assert posterior['beta'][i] == pytest.approx(LINEAR[n])


def test_posterior_of_a_stride_and_of_the_clean_image():
  process = diffusion.Diffusion(LINEAR)
  posterior = process.posterior(np.array([600, 0]), np.array([300, -1]))
  abar = np.cumprod(1 - LINEAR)
  assert posterior['beta'][0] == pytest.approx(1 - abar[600] / abar[300])
  assert posterior['coef_x0'][1] == pytest.approx(1)
  assert posterior['coef_xt'][1] == pytest.approx(0)
  assert posterior['variance'][1] == 0


@pytest.mark.parametrize('prediction', diffusion.PREDICTIONS)
def test_the_right_output_has_no_loss_and_gives_x0_back(prediction):
  process = diffusion.Diffusion(LINEAR, prediction=prediction)
  x0 = tf.random.stateless_uniform([4, 3, 3, 1], (0, 0), -1, 1)
  noise = tf.random.stateless_normal([4, 3, 3, 1], (0, 1))
  t = tf.constant([0, 10, 300, 700])
  target = process.target(x0, t, noise)
  np.testing.assert_array_equal(process.simple_loss(x0, t, noise, target), 0)
  np.testing.assert_allclose(
      process.simple_loss(x0, t, noise, target + 2.0), 4, rtol=1e-5
  )
  xt = process.q_sample(x0, t, noise)
  np.testing.assert_allclose(
      process.predict_x0(xt, t, target), x0, atol=2e-4
  )


def test_v_is_the_velocity():
  """v = d x_t / d phi, with phi = arctan(sigma / alpha)."""
  process = diffusion.Diffusion(LINEAR, prediction='v')
  abar = np.cumprod(1 - LINEAR)[400]
  phi = np.arctan2(np.sqrt(1 - abar), np.sqrt(abar))

  def x(phi):
    return np.cos(phi) * 0.3 + np.sin(phi) * 1.7

  expected = (x(phi + 1e-6) - x(phi - 1e-6)) / 2e-6
  one = tf.ones([1, 1, 1, 1])
  v = process.target(0.3 * one, tf.constant([400]), 1.7 * one)
  assert float(v[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5)


def test_refuses():
  with pytest.raises(ValueError, match="schedule is 'quadratic', expected"):
    diffusion.betas_for('quadratic', 10, beta_start=0, beta_end=1)
  with pytest.raises(ValueError, match="prediction is 'noise', expected"):
    diffusion.Diffusion(LINEAR, prediction='noise')
