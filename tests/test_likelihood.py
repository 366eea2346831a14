"""Bits per dimension and losses where the best network is known.

Pixels are independent, of one of two distributions: a Gaussian, or two levels
of 256, each as likely, whose entropy is 1 bit.
"""

import time

import numpy as np
import pytest
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import losses as losses_lib
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion.process import per_image
from ddpm.metrics import likelihood

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)
LOW, HIGH = 51, 153  # -0.6 and 0.2
MIDDLE, HALF = -0.2, 0.4


def two_point_estimate(xt, alpha, sigma, tanh):
  """E[x_0 | x_t] of the two levels."""
  return MIDDLE + HALF * tanh(HALF * alpha * (xt - alpha * MIDDLE) / sigma**2)


@pytest.mark.parametrize('variance', ['fixedlarge', 'fixedsmall'])
def test_bits_of_two_levels(variance):
  """All terms, by quadrature over the noise in float64."""
  process = process_lib.Diffusion(LINEAR, prediction='x0', variance=variance)
  abar = np.cumprod(1 - LINEAR)
  before = np.append(1.0, abar[:-1])
  tilde = LINEAR * (1 - before) / (1 - abar)
  z = np.linspace(-8, 8, 1601)
  density = np.exp(-(z**2) / 2)
  density /= density.sum()
  x0 = MIDDLE + HALF  # the other one is its mirror image
  total = 0.5 * (abar[-1] * (MIDDLE**2 + HALF**2) - abar[-1]
                 - np.log(1 - abar[-1]))  # fmt: skip
  for t in range(1, 1000):
    alpha, sigma = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
    xt = alpha * x0 + sigma * z
    estimate = two_point_estimate(xt, alpha, sigma, np.tanh)
    coef = np.sqrt(before[t]) * LINEAR[t] / (1 - abar[t])
    sigma2 = LINEAR[t] if variance == 'fixedlarge' else tilde[t]
    ratio = tilde[t] / sigma2
    error = density @ (coef * (estimate - x0)) ** 2
    total += 0.5 * (ratio + error / sigma2 - 1 - np.log(ratio))
  # With the posterior's variance the steps cost no more than they must.
  entropy = total / np.log(2)
  assert 1 < entropy < (1.02 if variance == 'fixedsmall' else 2.0)
  # The last step's estimate is right to 1e-300: its term is the mass of a
  # normal distribution within half a level, by Page's tanh.
  u = 1 / 255 / np.sqrt(tilde[1])
  page = np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))
  expected = entropy - np.log2(page)

  def network(x, time):
    level = process.level(tf.cast(time, tf.int32))
    return two_point_estimate(
        x, per_image(level.alpha), per_image(level.sigma), tf.tanh
    )

  levels = np.random.default_rng(0).integers(0, 2, [256, 16, 16, 1])
  images = np.where(levels, HIGH, LOW).astype(np.uint8)
  keys = rng.fold_in(rng.key(0), tf.range(256))
  bits = tf.function(
      lambda: likelihood.bits_per_dim(
          network, process, tf.constant(images), keys, jit_compile=True
      )
  )()
  bits = bits.numpy().astype(np.float64)
  assert np.mean(bits) == pytest.approx(expected, abs=3 * np.std(bits) / 16)
  assert np.std(bits) / 16 < 1.2e-3


@pytest.mark.parametrize('prediction', process_lib.PREDICTIONS)
def test_loss_of_the_best_network_is_the_analytic_minimum(prediction):
  """What a Gaussian's x_t leaves unknown: var(x_0 | x_t), scaled."""
  mean, std = 0.2, 0.5
  if prediction == 'edm':
    process = process_lib.EDM(sigma_data=0.4)
    t = tf.constant([0.02, 0.5, 5.0])
  else:
    process = process_lib.Diffusion(LINEAR, prediction=prediction)
    t = tf.constant([5, 300, 900])
  level = process.level(t)
  x0 = mean + std * tf.random.stateless_normal([3, 512, 512, 1], (0, 0))
  noise = tf.random.stateless_normal(x0.shape, (0, 1))
  alpha, sigma = per_image(level.alpha), per_image(level.sigma)
  total = (alpha * std) ** 2 + sigma**2
  rest = process.q_sample(x0, t, noise) - alpha * mean
  best = process.target(
      mean + alpha * std**2 * rest / total, level, sigma * rest / total
  )
  losses = losses_lib.Loss(process)(lambda x, time: best, x0, t, noise)

  alpha, sigma = level.alpha.numpy(), level.sigma.numpy()
  unknown = (std * sigma) ** 2 / ((alpha * std) ** 2 + sigma**2)
  scale = {
      'eps': (alpha / sigma) ** 2,
      'x0': 1.0,
      'v': 1 / sigma**2,
      'edm': 1 / sigma**2 + 1 / 0.4**2,
  }[prediction]
  np.testing.assert_allclose(losses['loss'], unknown * scale, rtol=8e-3)


def test_one_term_at_a_time():
  """oneDNN's kernels, on a CPU, crash where one is asked twice at once."""
  process = process_lib.Diffusion(LINEAR[:20])
  running = most = 0

  def watched(x):
    nonlocal running, most
    running += 1
    most = max(most, running)
    time.sleep(0.01)
    running -= 1
    return x

  def network(x, _):
    same = tf.numpy_function(watched, [x], x.dtype, stateful=False)
    return tf.ensure_shape(same, x.shape)

  @tf.function(autograph=False)
  def bits(images, seeds):
    return likelihood.bits_per_dim(
        network, process, images, rng.key(seeds), jit_compile=False
    )

  bits(tf.zeros([2, 4, 4, 1], tf.uint8), tf.range(2, dtype=tf.int64))
  assert most == 1
