"""Noise schedules and the spacing of a sampler's levels: float64 NumPy."""

import numpy as np

SCHEDULES = ('linear', 'cosine', 'edm')


def betas_for(schedule, num_timesteps, *, beta_start, beta_end):
  """The variances beta_t of the forward process.

  Args:
    schedule: 'linear' from beta_start to beta_end (Ho et al., section 4), or
      'cosine' (Nichol and Dhariwal 2021, equation 17, with s = 0.008 and
      beta clipped to 0.999).
    num_timesteps: T.
    beta_start: first beta of the linear schedule.
    beta_end: last beta of the linear schedule.

  Returns:
    float64 NumPy array [T].
  """
  if schedule == 'linear':
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)
  if schedule == 'cosine':
    t = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_cumprod = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)
  raise ValueError(f'schedule is {schedule!r}, expected linear or cosine')


def timesteps_for(num_timesteps, steps):
  """Evenly spaced timesteps, from T - 1 down to 0 (Nichol and Dhariwal 2021).

  Args:
    num_timesteps: T.
    steps: how many, 1 to T. One step is T - 1 alone.

  Returns:
    int64 NumPy array [steps], falling.

  Raises:
    ValueError: steps out of range.
  """
  if not 1 <= steps <= num_timesteps:
    raise ValueError(f'steps is {steps}, expected 1 to {num_timesteps}')
  return np.round(np.linspace(num_timesteps - 1, 0, steps)).astype(np.int64)


def posterior(alpha_t, sigma_t, alpha_s, sigma_s):
  """Coefficients of q(x_s | x_t, x_0), equations 6 and 7, for any s before t.

  With s = t - 1 these are the paper's. A longer stride is as in Nichol and
  Dhariwal 2021, section 3.4; any alpha and sigma, as in Kingma et al. 2021,
  "Variational diffusion models", appendix A.

  Args:
    alpha_t: float64 NumPy array [N], of the noisier levels.
    sigma_t: the same.
    alpha_s: of the levels before them; 1 for clean images.
    sigma_s: the same; 0 for clean images.

  Returns:
    Dict of float64 arrays [N]: the mean is coef_x0 * x_0 + coef_xt * x_t,
    'beta' is the forward variance of the stride, 'variance' the posterior's.
  """
  alpha = alpha_t / alpha_s
  beta = sigma_t**2 - (alpha * sigma_s) ** 2
  return {
      'coef_x0': alpha_s * beta / sigma_t**2,
      'coef_xt': alpha * (sigma_s / sigma_t) ** 2,
      'beta': beta,
      'variance': beta * (sigma_s / sigma_t) ** 2,
  }


def karras_sigmas(number, first, last, rho):
  """Noise levels that crowd at low noise: equation 5 of Karras et al. 2022."""
  return karras_sigma(np.linspace(0.0, 1.0, number), first, last, rho)


def karras_sigma(share, first, last, rho):
  """The level at a share of the way from the first one to the last."""
  first, last = first ** (1.0 / rho), last ** (1.0 / rho)
  return (first + share * (last - first)) ** rho
