"""The training losses against NumPy."""

import numpy as np
from oracles import variational_bound as oracle
import pytest
import tensorflow as tf

from ddpm.diffusion import losses as losses_lib
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)
X0 = tf.random.stateless_uniform([4, 3, 3, 1], (0, 0), -1, 1)
NOISE = tf.random.stateless_normal([4, 3, 3, 1], (0, 1))


@pytest.mark.parametrize('prediction', process_lib.PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0(prediction):
  """Whatever is predicted: min(SNR, gamma) |x_0 - estimate|^2 (Hang et al.)."""
  if prediction == 'edm':
    process, t = process_lib.EDM(), tf.constant([0.01, 0.3, 2.0, 30.0])
  else:
    process = process_lib.Diffusion(LINEAR, prediction=prediction)
    t = tf.constant([0, 10, 300, 700])
  output = tf.sin(7.0 * X0)
  loss = losses_lib.Loss(process, 'min_snr', min_snr_gamma=5.0)
  losses = loss(lambda x, time: output, X0, t, NOISE)
  level = process.level(t)
  xt = process.q_sample(X0, t, NOISE)
  estimate, _ = process.denoise(lambda x, time: output, xt, level)
  error = tf.reduce_mean(tf.square(estimate - X0), axis=[1, 2, 3])
  snr = np.square(level.alpha / level.sigma)
  assert snr.min() < 5 < snr.max()
  expected = np.minimum(snr, 5) * error
  np.testing.assert_allclose(losses['loss'], expected, rtol=2e-3)


def test_hybrid_and_vlb_losses():
  """Equation 16 of Nichol and Dhariwal 2021, with 1000 / T of their code."""
  betas = LINEAR[::50]
  process = process_lib.Diffusion(betas, variance='learned_range')
  rng = np.random.default_rng(1)
  x0 = np.repeat(rng.integers(0, 256, [1, 4, 4, 1]) / 127.5 - 1, 20, axis=0)
  noise, eps, share = rng.normal(size=[3, 20, 4, 4, 1])
  abar = np.cumprod(1 - betas).reshape(-1, 1, 1, 1)
  xt = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
  estimate = (xt - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
  # The training loss does not clip the estimate.
  assert np.abs(estimate).max() > 1.5
  terms = oracle.terms(process, x0[0], xt, estimate, 'learned_range', share)[1:]
  mse = np.mean((noise - eps) ** 2, axis=(1, 2, 3))

  x0, noise, eps, share = (
      tf.constant(x, tf.float32) for x in (x0, noise, eps, share)
  )
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([eps, share])
    losses = {
        loss: losses_lib.Loss(process, loss)(
            lambda x, time: tf.concat([eps, share], -1),
            x0, tf.range(20), noise,
        )
        for loss in ('vlb', 'hybrid')
    }  # fmt: skip
    mean = tf.reduce_mean(losses['hybrid']['mse'])
    bound = tf.reduce_mean(losses['hybrid']['vb'])
  tolerance = {'rtol': 2e-3, 'atol': 1e-5}
  got = losses['vlb']['loss'] / 20
  np.testing.assert_allclose(got[1:], terms[1:], **tolerance)
  # The decoder's, by Page's approximation.
  np.testing.assert_allclose(got[0], terms[0], rtol=5e-2)
  hybrid = losses['hybrid']
  np.testing.assert_allclose(hybrid['mse'], mse, rtol=1e-5)
  np.testing.assert_allclose(hybrid['vb'], 0.02 * got, rtol=1e-5)
  np.testing.assert_allclose(
      hybrid['loss'], hybrid['mse'] + hybrid['vb'], rtol=1e-6
  )
  assert tuple(hybrid) == losses_lib.Loss(process, 'hybrid').terms
  # The bound moves the variance alone, the square the estimate alone.
  np.testing.assert_array_equal(tape.gradient(bound, eps), 0)
  np.testing.assert_array_equal(tape.gradient(mean, share), 0)
  assert np.abs(tape.gradient(bound, share)).min() > 0


@pytest.mark.parametrize(
    'process, kwargs, message',
    [
        (process_lib.Diffusion(LINEAR), {'loss': 'l1'}, "loss is 'l1', exp"),
        (process_lib.EDM(), {'loss': 'vlb'}, 'which the schedule edm does not'),
        (process_lib.Diffusion(LINEAR), {'loss': 'hybrid'}, 'hybrid needs it'),
        (
            process_lib.Diffusion(LINEAR, variance='learned_range'), {},
            'learn a learned_range',
        ),
        (
            process_lib.Diffusion(LINEAR), {'min_snr_gamma': 0.0},
            'min_snr_gamma is 0.0, expected more than 0',
        ),
    ],
)  # fmt: skip
def test_refuses(process, kwargs, message):
  with pytest.raises(ValueError, match=message):
    losses_lib.Loss(process, **kwargs)
