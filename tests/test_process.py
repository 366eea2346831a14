"""The formulas of Ho et al. 2020, written again, and their probabilities."""

import numpy as np
import pytest
import tensorflow as tf

from ddpm.diffusion import losses as losses_lib
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


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
    losses = losses_lib.Loss(process)(
        lambda x, time, output=output: output, X0, t, NOISE
    )
    np.testing.assert_allclose(losses['loss'], expected, rtol=1e-5)
  xt = process.q_sample(X0, t, NOISE)
  estimate, share = process.denoise(lambda x, time: target, xt, level)
  np.testing.assert_allclose(estimate, X0, atol=2e-4)
  assert share is None


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

  losses = losses_lib.Loss(process)(network, X0, t, NOISE)
  np.testing.assert_allclose(losses['loss'], expected, rtol=1e-4)
  np.testing.assert_allclose(seen['x'], c_in * noised, rtol=1e-5)
  np.testing.assert_allclose(seen['time'], np.log(t) / 4, rtol=1e-6)
  level = process.level(t)
  estimate, _ = process.denoise(network, noised, level)
  np.testing.assert_allclose(estimate, denoised, rtol=1e-4, atol=1e-5)


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
      LINEAR, spacing=schedules.KarrasSpacing(0.05, 20.0, rho=3.0)
  )
  expected = np.linspace(20 ** (1 / 3), 0.05 ** (1 / 3), 6) ** 3
  steps = process.steps(6, karras_spacing=True)
  np.testing.assert_allclose(steps.sigma / steps.alpha, expected, rtol=1e-9)


@pytest.mark.parametrize('at', [0.5, 0.01])
def test_steps_from_a_part_of_the_process(at):
  process = process_lib.Diffusion(
      LINEAR, spacing=schedules.KarrasSpacing(sigma_min=0.05)
  )
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


def test_the_target_keeps_its_digits_at_little_noise():
  """1 - c_skip is 1.6e-5 at sigma 0.002: in float32 it has two digits."""
  process = process_lib.EDM()
  level = process.level(tf.constant([0.002]))
  one, zero = tf.ones([1, 1, 1, 1]), tf.zeros([1, 1, 1, 1])
  sigma = float(np.float32(0.002))
  expected = sigma / (0.5 * np.sqrt(sigma**2 + 0.25))
  got = process.target(one, level, zero)
  assert float(got[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-6)


def test_refuses():
  for prediction in ('noise', 'edm'):
    with pytest.raises(ValueError, match=f"prediction is '{prediction}', exp"):
      process_lib.Diffusion(LINEAR, prediction=prediction)
  with pytest.raises(ValueError, match="variance is 'small', expected"):
    process_lib.Diffusion(LINEAR, variance='small')
  with pytest.raises(ValueError, match='steps is 0, expected 1 to 1000'):
    process_lib.EDM().steps(0)
