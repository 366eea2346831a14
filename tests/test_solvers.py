"""Solvers against plain loops, and on data whose denoiser is known."""

import numpy as np
import pytest
from support import gaussian_network
from support import GAUSSIAN_SHAPE as SHAPE
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion import solvers
from ddpm.sampling import sampler as sampler_lib

BETAS = schedules.betas_for('linear', 50, beta_start=1e-3, beta_end=0.15)


def draw(
    sampler, steps, *, n, process=None, jit_compile=True, clip=True, **kwargs
):
  """float32 [n, *SHAPE] of the analytic network, for seeds 0 to n - 1."""
  process = process or process_lib.Diffusion(BETAS)
  levels = solvers.steps_for(process, sampler, steps)
  rows = solvers.table(process, levels, sampler=sampler, **kwargs)

  def function(keys):
    x, _ = sampler_lib.sample(
        gaussian_network(process),
        process,
        rows,
        start=process.prior_sigma
        * sampler_lib.initial_noise(process, keys, SHAPE),
        keys=keys,
        constrain=pixels.clip if clip else lambda x0: x0,
    )
    return x

  keys = rng.fold_in(rng.key(0), tf.range(n))
  return tf.function(function, jit_compile=jit_compile)(keys).numpy()


@pytest.mark.parametrize('variance', ('fixedlarge', 'fixedsmall'))
def test_ancestral_is_algorithm_2(variance):
  """A loop over T single steps, in float64, with Ho's coefficients."""
  alphas, abar = 1 - BETAS, np.cumprod(1 - BETAS)
  process = process_lib.Diffusion(BETAS, variance=variance)
  network = gaussian_network(process)
  keys = rng.fold_in(rng.key(0), tf.range(5))
  x = rng.normal(rng.fold_in(keys, 50), SHAPE).numpy().astype(np.float64)
  for t in reversed(range(50)):
    eps = network(x.astype(np.float32), tf.fill([5], t)).numpy()
    x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
    x0 = np.clip(x0, -1, 1)
    before = abar[t - 1] if t else 1.0
    mean = (
        np.sqrt(before) * BETAS[t] / (1 - abar[t]) * x0
        + np.sqrt(alphas[t]) * (1 - before) / (1 - abar[t]) * x
    )
    beta = BETAS[t]
    if variance == 'fixedsmall':
      beta *= (1 - before) / (1 - abar[t])
    z = rng.normal(rng.fold_in(keys, t), SHAPE).numpy() if t else 0
    x = mean + np.sqrt(beta) * z
  got = draw('ancestral', 50, n=5, process=process)
  np.testing.assert_allclose(got, x, atol=1e-5)


def test_ddim_is_equation_12():
  abar = np.cumprod(1 - BETAS)
  ts = schedules.timesteps_for(50, 10)
  network = gaussian_network(process_lib.Diffusion(BETAS))
  keys = rng.fold_in(rng.key(0), tf.range(5))
  x = rng.normal(rng.fold_in(keys, 50), SHAPE).numpy().astype(np.float64)
  for t, s in zip(ts, [*ts[1:], None]):
    eps = network(x.astype(np.float32), tf.fill([5], t)).numpy()
    x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
    x0 = np.clip(x0, -1, 1)
    eps = (x - np.sqrt(abar[t]) * x0) / np.sqrt(1 - abar[t])
    a = 1.0 if s is None else abar[s]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
  np.testing.assert_allclose(draw('ddim', 10, n=5), x, atol=1e-5)


LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


@pytest.mark.parametrize('prediction', process_lib.PREDICTIONS)
@pytest.mark.parametrize(
    'sampler, steps, kwargs',
    [
        ('ancestral', 1000, {}),
        ('ancestral', 500, {}),
        ('ddim', 200, {}),
        ('ddim', 1000, {'eta': 1.0}),
        ('dpmpp_2m', 200, {}),
        ('dpmpp_2m', 200, {'eta': 1.0}),
        ('heun', 50, {}),
    ],
)
def test_draws_the_distribution(sampler, steps, prediction, kwargs):
  """Means and standard deviations of a Gaussian, whatever is predicted."""
  if prediction == 'edm':
    process = process_lib.EDM()
  else:
    process = process_lib.Diffusion(LINEAR, prediction=prediction)
  clip = sampler != 'heun'
  x = draw(sampler, steps, n=4000, process=process, clip=clip, **kwargs)
  assert x.mean() == pytest.approx(0.2, abs=0.01)
  assert x.std() == pytest.approx(0.2, abs=0.01)


def exact_flow(process, levels, n):
  """Where the probability flow of the Gaussian leads, in closed form.

  Every sampler without noise solves dx/dt of Song et al. 2021b, along which
  (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) stands still; from the last
  level each takes the best guess of x_0.
  """
  keys = rng.fold_in(rng.key(0), tf.range(n))
  x = rng.normal(rng.fold_in(keys, process.num_timesteps), SHAPE).numpy()
  x = x.astype(np.float64) * process.prior_sigma

  def std(i):
    return np.sqrt((levels.alpha[i] * 0.2) ** 2 + levels.sigma[i] ** 2)

  x = (x - levels.alpha[0] * 0.2) / std(0) * std(-1)
  return 0.2 + levels.alpha[-1] * 0.2**2 * x / std(-1) ** 2


@pytest.mark.parametrize(
    'sampler, order', [('ddim', 1), ('dpmpp_2m', 2), ('heun', 2)]
)
@pytest.mark.parametrize('process', [
    process_lib.Diffusion(LINEAR, prediction='v'), process_lib.EDM()
], ids=['vp', 'edm'])  # fmt: skip
def test_deterministic_samplers_reach_the_analytic_end(
    sampler, order, process
):
  errors = []
  for steps in (112, 334):  # 999 / 111 and 999 / 333 are whole
    x = draw(
        sampler, steps, n=50, process=process, clip=False, jit_compile=False
    )
    levels = solvers.steps_for(process, sampler, steps)
    errors.append(np.abs(x - exact_flow(process, levels, 50)).max())
  # Three times the steps: the error falls by 3, or by 9.
  assert errors[0] < 0.05
  assert errors[0] / errors[1] > (6 if order == 2 else 2.5)


def moments(process, sampler, steps, *, std, share=None, **kwargs):
  """Mean and standard deviation of a pixel's samples, in float64.

  For pixels ~ N(0.2, std^2) the best guess of x_0 is affine in x_t, and so is
  the whole chain: its Gaussian is followed in closed form.
  """
  levels = solvers.steps_for(process, sampler, steps)
  rows = solvers.table(process, levels, sampler=sampler, **kwargs)
  alpha, sigma = rows['alpha'], rows['sigma']
  gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
  mean, covariance = np.zeros(2), np.zeros([2, 2])  # of (x, m)
  covariance[0, 0] = process.prior_sigma**2
  for i in range(len(alpha)):
    row = {name: column[i] for name, column in rows.items()}
    a = np.array([
        [row['from_x0'] * gain[i] + row['from_x'], row['from_previous']],
        [row['keep_x0'] * gain[i] + row['keep_x'], 0.0],
    ])  # fmt: skip
    b = np.array([row['from_x0'], row['keep_x0']])
    b *= (1 - gain[i] * alpha[i]) * 0.2
    noise = row['noise']
    if share is not None:
      low, high = row['log_posterior'], row['log_beta']
      noise *= np.exp(0.5 * (low + share[i] * (high - low)))
    mean, covariance = a @ mean + b, a @ covariance @ a.T
    covariance[0, 0] += noise**2
  return mean[0], np.sqrt(covariance[0, 0])


FINE = schedules.betas_for('linear', 4000, beta_start=2.5e-5, beta_end=0.005)


@pytest.mark.parametrize(
    'process, sampler, steps, std',
    [
        # Ho et al., section 3.2: the variance that is best for x_0 ~ N(0, I),
        # and for a single x_0, in however few steps.
        (process_lib.Diffusion(LINEAR), 'ancestral', 10, 1.0),
        (process_lib.Diffusion(LINEAR, variance='fixedsmall'),
         'ancestral', 10, 1e-6),
        (process_lib.Diffusion(LINEAR), 'ancestral', 1000, 0.2),
        (process_lib.EDM(), 'ddim', 1000, 0.2),
        (process_lib.Diffusion(FINE), 'ddim', 4000, 0.2),
        (process_lib.Diffusion(LINEAR), 'dpmpp_2m', 334, 0.2),
        (process_lib.EDM(), 'dpmpp_2m', 100, 0.2),
        (process_lib.Diffusion(LINEAR), 'heun', 100, 0.2),
        (process_lib.EDM(), 'heun', 100, 0.2),
    ],
)  # fmt: skip
def test_moments_are_the_datas(process, sampler, steps, std):
  mean, spread = moments(process, sampler, steps, std=std)
  assert mean == pytest.approx(0.2, abs=1e-3)
  assert spread == pytest.approx(std, abs=1e-3)


@pytest.mark.parametrize('steps', [10, 50, 1000])
def test_the_best_variance_draws_the_data_in_any_number_of_steps(steps):
  """Bao et al. 2022, "Analytic-DPM": posterior's + coef_x0^2 Var(x_0 | x_t),
  which a learned range can be, lies between the fixed ones."""
  process = process_lib.Diffusion(LINEAR, variance='learned_range')
  t = schedules.timesteps_for(1000, steps)
  coef = process.posterior(t, np.append(t[1:], -1))
  abar = process.alphas_cumprod[t]
  uncertain = 0.2**2 * (1 - abar) / (abar * 0.2**2 + 1 - abar)
  best = coef['variance'] + coef['coef_x0'] ** 2 * uncertain
  low, high = np.log(coef['variance'][:-1]), np.log(coef['beta'][:-1])
  share = np.append((np.log(best[:-1]) - low) / (high - low), 0.0)
  assert share[:-1].min() > 0 and share.max() < 1
  mean, spread = moments(process, 'ancestral', steps, std=0.2, share=share)
  # But for the last step, which draws no noise.
  last = np.sqrt(0.2**2 - uncertain[-1])
  assert mean == pytest.approx(0.2, abs=1e-3)
  assert spread == pytest.approx(last, abs=1e-4)


def test_a_learned_variance_lies_between_the_fixed_ones():
  """At its ends the noise is the posterior's, and beta's."""

  def learned(share):
    process = process_lib.Diffusion(BETAS, variance='learned_range')
    plain = gaussian_network(process_lib.Diffusion(BETAS))
    rows = solvers.table(process, process.steps(10), sampler='ancestral')

    def network(x, time):
      return tf.concat([plain(x, time), tf.fill(tf.shape(x), share)], -1)

    keys = rng.fold_in(rng.key(0), tf.range(5))
    x, _ = sampler_lib.sample(
        network, process, rows, keys=keys, constrain=pixels.clip,
        start=sampler_lib.initial_noise(process, keys, SHAPE),
    )  # fmt: skip
    return x.numpy()

  ends = {}
  for share, variance in ((-1.0, 'fixedsmall'), (1.0, 'fixedlarge')):
    process = process_lib.Diffusion(BETAS, variance=variance)
    ends[share] = draw('ancestral', 10, n=5, process=process)
    np.testing.assert_allclose(learned(share), ends[share], atol=1e-5)
  between = np.abs(learned(0.0) - ends[-1.0]).max()
  assert 0 < between < np.abs(ends[1.0] - ends[-1.0]).max()


def test_eta_of_dpmpp_2m_is_k_diffusions():
  """Its sample_dpmpp_2m_sde, solver 'midpoint', in float64: sigma / alpha is
  its sigma, x / alpha its x."""
  process = process_lib.Diffusion(LINEAR, prediction='v')
  levels = solvers.steps_for(process, 'dpmpp_2m', 8)
  network = gaussian_network(process)
  keys = rng.fold_in(rng.key(0), tf.range(5))
  x = rng.normal(rng.fold_in(keys, 1000), SHAPE).numpy().astype(np.float64)
  x /= levels.alpha[0]
  sigmas = np.append(levels.sigma / levels.alpha, 0.0)
  before = last = None
  for i, alpha in enumerate(levels.alpha):
    v = network((x * alpha).astype(np.float32), tf.fill([5], levels.time[i]))
    x0 = x * alpha**2 - levels.sigma[i] * v.numpy()
    if i == 7:
      x = x0
      break
    h = np.log(sigmas[i] / sigmas[i + 1])
    gain = -np.expm1(-h - 0.4 * h)
    x = sigmas[i + 1] / sigmas[i] * np.exp(-0.4 * h) * x + gain * x0
    if before is not None:
      x += 0.5 * gain * h / last * (x0 - before)
    z = rng.normal(rng.fold_in(keys, levels.t[i]), SHAPE).numpy()
    x += z * sigmas[i + 1] * np.sqrt(-np.expm1(-2 * h * 0.4))
    before, last = x0, h
  got = draw('dpmpp_2m', 8, n=5, process=process, clip=False, eta=0.4)
  np.testing.assert_allclose(got, x, atol=1e-4)


def test_default_steps():
  assert solvers.default_steps('ancestral', 4000) == 4000
  for sampler in solvers.SOLVERS:
    assert solvers.default_steps(sampler, 10) == 10
    assert solvers.default_steps(sampler, 1000) >= 18


def test_refuses_an_unknown_sampler():
  process = process_lib.Diffusion(BETAS)
  with pytest.raises(ValueError, match="sampler is 'euler', expected one of"):
    solvers.table(process, process.steps(5), sampler='euler')


def test_which_samplers_take_eta():
  for sampler, eta in (('ddim', 1.0), ('dpmpp_2m', 0.5), ('heun', 0.0)):
    solvers.SamplerSpec(sampler, 5, eta=eta)
  for sampler in ('ancestral', 'heun'):
    message = f'^eta is 0.5, which only ddim and dpmpp_2m take, .* {sampler}'
    with pytest.raises(ValueError, match=message):
      solvers.SamplerSpec(sampler, 5, eta=0.5)


@pytest.mark.parametrize(
    'args, message',
    [
        (('euler', 5), "sampler is 'euler', expected one of: ancestral"),
        (('ddim', 0), 'steps is 0, expected at least 1'),
        (('ddim', 5, -0.1), 'eta is -0.1, expected 0 to 1'),
        (('ddim', 5, 1.1), 'eta is 1.1, expected 0 to 1'),
        (('ddim', 5, float('nan')), 'eta is nan, expected 0 to 1'),
        (('ddim', 5, 0.0, float('inf')), 'guidance is inf, expected a finite'),
    ],
)
def test_refuses(args, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    solvers.SamplerSpec(*args)
