"""The formulas of Ho et al. 2020, written again, and their probabilities."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


def test_linear_schedule():
  assert LINEAR.dtype == np.float64
  assert LINEAR[0] == 1e-4 and LINEAR[-1] == 0.02
  # Section 4: the last step is nearly pure noise, about 1e-5 nats from it.
  abar = np.prod([1 - b for b in LINEAR])
  assert process_lib.Diffusion(LINEAR).alphas_cumprod[-1] == pytest.approx(abar)
  assert abar == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_schedule():
  betas = schedules.betas_for('cosine', 50, beta_start=0, beta_end=0)

  def f(t):
    return np.cos((t / 50 + 0.008) / 1.008 * np.pi / 2) ** 2

  expected = [min(1 - f(t + 1) / f(t), 0.999) for t in range(50)]
  np.testing.assert_allclose(betas, expected, rtol=1e-12)
  assert betas[-1] == 0.999


def test_q_sample_is_a_chain_of_single_steps():
  """Equation 4 from equation 2: means and variances of t + 1 steps."""
  process = process_lib.Diffusion(LINEAR)
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
  process = process_lib.Diffusion(LINEAR)
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
  process = process_lib.Diffusion(LINEAR)
  posterior = process.posterior(np.array([600, 0]), np.array([300, -1]))
  abar = np.cumprod(1 - LINEAR)
  assert posterior['beta'][0] == pytest.approx(1 - abar[600] / abar[300])
  assert posterior['coef_x0'][1] == pytest.approx(1)
  assert posterior['coef_xt'][1] == pytest.approx(0)
  assert posterior['variance'][1] == 0


def process_of(prediction, **kwargs):
  """A process of a prediction, and four of its noise levels."""
  if prediction == 'edm':
    return process_lib.EDM(**kwargs), tf.constant([0.01, 0.3, 2.0, 30.0])
  process = process_lib.Diffusion(LINEAR, prediction=prediction, **kwargs)
  return process, tf.constant([0, 10, 300, 700])


X0 = tf.random.stateless_uniform([4, 3, 3, 1], (0, 0), -1, 1)
NOISE = tf.random.stateless_normal([4, 3, 3, 1], (0, 1))


@pytest.mark.parametrize('prediction', process_lib.PREDICTIONS)
def test_the_right_output_has_no_loss_and_gives_x0_back(prediction):
  process, t = process_of(prediction)
  level = process.level(t)
  target = process.target(X0, level, NOISE)
  for output, expected in ((target, 0), (target + 2.0, 4)):
    losses = process.losses(
        lambda x, time, output=output: output, X0, t, NOISE, loss='simple'
    )
    np.testing.assert_allclose(losses['loss'], expected, rtol=1e-5)
  xt = process.q_sample(X0, t, NOISE)
  np.testing.assert_allclose(
      process.predict_x0(xt, level, target), X0, atol=2e-4
  )


def test_edm_is_table_1():
  """D and the loss as Karras et al. write them, with sigma_data = 0.5."""
  process, t = process_of('edm')
  sigma = t.numpy().reshape(-1, 1, 1, 1)
  seen = {}

  def network(x, time):
    seen.update(x=x, time=time)
    return tf.sin(5.0 * x)

  noised = (X0 + sigma * NOISE).numpy()
  c_in = 1 / np.sqrt(sigma**2 + 0.25)
  c_skip = 0.25 / (sigma**2 + 0.25)
  c_out = sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
  denoised = c_skip * noised + c_out * np.sin(5 * c_in * noised)
  weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
  expected = (weight * (denoised - X0) ** 2).numpy().mean(axis=(1, 2, 3))

  losses = process.losses(network, X0, t, NOISE, loss='simple')
  np.testing.assert_allclose(losses['loss'], expected, rtol=1e-4)
  np.testing.assert_allclose(seen['x'], c_in * noised, rtol=1e-5)
  np.testing.assert_allclose(seen['time'], np.log(t) / 4, rtol=1e-6)
  level = process.level(t)
  output = process.network_output(network, noised, level)
  np.testing.assert_allclose(
      process.predict_x0(noised, level, output), denoised, rtol=1e-4, atol=1e-5
  )


def test_edm_steps_are_equation_5():
  steps = process_lib.EDM().steps(18)
  i = np.arange(18)
  expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(steps.sigma, expected, rtol=1e-12)
  np.testing.assert_allclose(steps.time, np.log(expected) / 4)
  assert list(steps.t) == list(range(17, -1, -1))
  assert list(process_lib.EDM().steps(1).sigma) == [80.0]


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_steps_karras_spacing(schedule):
  betas = schedules.betas_for(schedule, 1000, beta_start=1e-4, beta_end=0.02)
  process = process_lib.Diffusion(betas)
  ratios = np.sqrt(1 / process.alphas_cumprod - 1)
  steps = process.steps(10, karras_spacing=True)
  first, last = min(80, ratios[-1]) ** (1 / 7), ratios[0] ** (1 / 7)
  expected = (first + np.arange(10) / 9 * (last - first)) ** 7
  np.testing.assert_allclose(steps.sigma / steps.alpha, expected, rtol=1e-9)
  np.testing.assert_allclose(steps.sigma**2 + steps.alpha**2, 1, rtol=1e-12)
  # Each time lies between the timesteps whose levels hold its own.
  low, high = np.floor(steps.time).astype(int), np.ceil(steps.time).astype(int)
  assert np.all(ratios[low] * (1 - 1e-9) <= expected)
  assert np.all(expected <= ratios[high] * (1 + 1e-9))
  np.testing.assert_allclose(steps.time[-1], 0, atol=1e-9)


def test_steps_karras_spacing_between_two_levels():
  process = process_lib.Diffusion(
      LINEAR, sigma_min=0.05, sigma_max=20.0, rho=3.0
  )
  expected = np.linspace(20 ** (1 / 3), 0.05 ** (1 / 3), 6) ** 3
  steps = process.steps(6, karras_spacing=True)
  np.testing.assert_allclose(steps.sigma / steps.alpha, expected, rtol=1e-9)


@pytest.mark.parametrize('at', [0.5, 0.01])
def test_steps_from_a_part_of_the_process(at):
  process = process_lib.Diffusion(LINEAR, sigma_min=0.05)
  begin = round(at * 1000)
  ratios = np.sqrt(1 / process.alphas_cumprod - 1)
  steps = process.steps(4, strength=at)
  assert steps.t[0] == begin - 1 and steps.t[-1] == 0
  steps = process.steps(4, karras_spacing=True, strength=at)
  ratio = steps.sigma / steps.alpha
  assert ratio[0] == pytest.approx(ratios[begin - 1])
  # Below sigma_min it goes to the schedule's own end.
  assert ratio[-1] == pytest.approx(0.05 if at == 0.5 else ratios[0])
  assert np.all(np.diff(ratio) < 0)
  with pytest.raises(ValueError, match=f'steps is 501, expected 1 to {begin}'):
    process.steps(501, strength=at)


def test_edm_steps_from_a_part_of_the_process():
  """The share of the way down in sigma^(1 / rho)."""
  whole = process_lib.EDM().steps(9)
  half = process_lib.EDM().steps(5, strength=0.5)
  np.testing.assert_allclose(half.sigma, whole.sigma[4:], rtol=1e-9)


@pytest.mark.parametrize('prediction', process_lib.PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0(prediction):
  """Whatever is predicted: min(SNR, gamma) |x_0 - guess|^2 (Hang et al.)."""
  process, t = process_of(prediction)
  output = tf.sin(7.0 * X0)
  losses = process.losses(
      lambda x, time: output, X0, t, NOISE, loss='min_snr', min_snr_gamma=5.0
  )
  level = process.level(t)
  guess = process.predict_x0(process.q_sample(X0, t, NOISE), level, output)
  error = tf.reduce_mean(tf.square(guess - X0), axis=[1, 2, 3])
  snr = np.square(level.alpha / level.sigma).ravel()
  assert snr.min() < 5 < snr.max()
  expected = np.minimum(snr, 5) * error
  np.testing.assert_allclose(losses['loss'], expected, rtol=2e-3)


def test_timesteps_are_told_in_thousandths():
  process = process_lib.Diffusion(LINEAR[::4], rescale_timesteps=True)
  assert list(process.level(tf.constant([0, 1, 249])).time) == [0, 4, 996]


def test_v_is_the_velocity():
  """v = d x_t / d phi, with phi = arctan(sigma / alpha)."""
  process = process_lib.Diffusion(LINEAR, prediction='v')
  abar = np.cumprod(1 - LINEAR)[400]
  phi = np.arctan2(np.sqrt(1 - abar), np.sqrt(abar))

  def x(phi):
    return np.cos(phi) * 0.3 + np.sin(phi) * 1.7

  expected = (x(phi + 1e-6) - x(phi - 1e-6)) / 2e-6
  one = tf.ones([1, 1, 1, 1])
  level = process.level(tf.constant([400]))
  v = process.target(0.3 * one, level, 1.7 * one)
  assert float(v[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5)


def _vlb_by_hand(process, x0, xt, guess, variance, share=None):
  """All terms of equation 5 in NumPy, from equations 2, 6, 7 and 13: bits.

  A learned variance is equation 15 of Nichol and Dhariwal 2021.
  """
  betas = process.betas
  abar = np.cumprod(1 - betas)
  before = np.append(1.0, abar[:-1])
  tilde = betas * (1 - before) / (1 - abar)
  terms = [0.5 * (abar[-1] * x0**2 - abar[-1] - np.log(1 - abar[-1]))]
  for t in range(len(betas)):
    # At t = 0 the posterior has none, and the next one's stands in for it.
    small = tilde[max(t, 1)]
    sigma2 = betas[t] if variance == 'fixedlarge' and t else small
    if variance == 'learned_range':
      v = (share[t] + 1) / 2
      sigma2 = np.exp(v * np.log(betas[t]) + (1 - v) * np.log(small))
    a = np.sqrt(before[t]) * betas[t] / (1 - abar[t])
    b = np.sqrt(1 - betas[t]) * (1 - before[t]) / (1 - abar[t])
    mean = a * guess[t] + b * xt[t]
    if t:
      distance = (a * x0 + b * xt[t] - mean) ** 2
      ratio = tilde[t] / sigma2
      terms.append(0.5 * (ratio + distance / sigma2 - 1 - np.log(ratio)))
    else:
      # The exact normal distribution, which Ho's code approximates.
      cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
      high = cdf((x0 + 1 / 255 - mean) / np.sqrt(sigma2))
      low = cdf((x0 - 1 / 255 - mean) / np.sqrt(sigma2))
      high, low = np.where(x0 > 0.999, 1, high), np.where(x0 < -0.999, 0, low)
      terms.append(-np.log(np.maximum(high - low, 1e-12)))
  return [term.mean() / np.log(2) for term in terms]


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
  # Some guesses are beyond what an image can be, and are clipped.
  guess = x0[0] + 0.005 * rng.normal(size=[20, 6, 6, 1])
  share = rng.uniform(-1.2, 1.2, size=guess.shape)
  expected = _vlb_by_hand(
      process, x0[0], xt, guess.clip(-1, 1), variance, share
  )
  output = guess
  if variance == 'learned_range':
    output = np.concatenate([guess, share], axis=-1)

  t = tf.range(20)
  batch = tf.constant(np.repeat(x0, 20, axis=0), tf.float32)
  terms = process.vlb_term(
      batch, tf.constant(xt, tf.float32), t, tf.constant(output, tf.float32)
  )
  prior = process.vlb_prior(batch[:1])
  np.testing.assert_allclose(prior, expected[:1], rtol=1e-3)
  np.testing.assert_allclose(terms[1:], expected[2:], rtol=2e-3, atol=1e-6)
  # Page's approximation is good to 1e-3, and worse where little is left.
  assert float(terms[0]) == pytest.approx(expected[1], rel=1e-2)


def test_a_perfect_guess_costs_the_prior_and_the_last_step():
  """With the posterior's own variance the model is the posterior."""
  process = process_lib.Diffusion(
      LINEAR[::50], prediction='x0', variance='fixedsmall'
  )
  x0 = tf.fill([20, 4, 4, 1], 3 / 127.5 - 1)
  xt = tf.random.stateless_normal(x0.shape, (0, 0))
  terms = process.vlb_term(x0, xt, tf.range(20), x0)
  np.testing.assert_allclose(terms[1:], 0, atol=1e-6)
  assert terms[0] > 0


def test_hybrid_and_vlb_losses():
  """Equation 16 of Nichol and Dhariwal 2021, with 1000 / T of their code."""
  betas = LINEAR[::50]
  process = process_lib.Diffusion(betas, variance='learned_range')
  rng = np.random.default_rng(1)
  x0 = np.repeat(rng.integers(0, 256, [1, 4, 4, 1]) / 127.5 - 1, 20, axis=0)
  noise, eps, share = rng.normal(size=[3, 20, 4, 4, 1])
  abar = np.cumprod(1 - betas).reshape(-1, 1, 1, 1)
  xt = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
  guess = (xt - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
  # The training loss does not clip the guess.
  assert np.abs(guess).max() > 1.5
  terms = _vlb_by_hand(process, x0[0], xt, guess, 'learned_range', share)[1:]
  mse = np.mean((noise - eps) ** 2, axis=(1, 2, 3))

  x0, noise, eps, share = (
      tf.constant(x, tf.float32) for x in (x0, noise, eps, share)
  )
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([eps, share])
    losses = {
        loss: process.losses(
            lambda x, time: tf.concat([eps, share], -1),
            x0, tf.range(20), noise, loss=loss,
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
  assert tuple(hybrid) == process_lib.loss_terms('hybrid')
  # The bound moves the variance alone, the square the guess alone.
  np.testing.assert_array_equal(tape.gradient(bound, eps), 0)
  np.testing.assert_array_equal(tape.gradient(mean, share), 0)
  assert np.abs(tape.gradient(bound, share)).min() > 0


def test_refuses():
  with pytest.raises(ValueError, match="schedule is 'quadratic', expected"):
    schedules.betas_for('quadratic', 10, beta_start=0, beta_end=1)
  for prediction in ('noise', 'edm'):
    with pytest.raises(ValueError, match=f"prediction is '{prediction}', exp"):
      process_lib.Diffusion(LINEAR, prediction=prediction)
  with pytest.raises(ValueError, match="variance is 'small', expected"):
    process_lib.Diffusion(LINEAR, variance='small')
  with pytest.raises(ValueError, match='steps is 0, expected 1 to 1000'):
    process_lib.EDM().steps(0)


def test_timesteps():
  assert list(schedules.timesteps_for(1000, 4)) == [999, 666, 333, 0]
  assert list(schedules.timesteps_for(5, 5)) == [4, 3, 2, 1, 0]
  assert list(schedules.timesteps_for(1000, 1)) == [999]
  for steps in (0, 1001):
    with pytest.raises(ValueError, match='expected 1 to 1000'):
      schedules.timesteps_for(1000, steps)
