"""Noise schedules, and the spacing of a sampler's levels: float64 NumPy."""

import dataclasses

import numpy as np


def linear(num_timesteps, beta_start, beta_end):
  """beta_t, linear in t: Ho et al., section 4. Returns float64 [T]."""
  return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def cosine(num_timesteps, beta_start, beta_end):
  """Nichol and Dhariwal 2021, equation 17: s = 0.008, beta_t at most 0.999.

  Returns float64 [T].
  """
  del beta_start, beta_end
  t = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
  alphas_cumprod = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


# To add a schedule of T steps, write its function and its row here.
SCHEDULES = {'linear': linear, 'cosine': cosine}


def betas_for(schedule, num_timesteps, *, beta_start, beta_end):
  """The variances beta_t of the forward process.

  Args:
    schedule: a name in SCHEDULES.
    num_timesteps: T.
    beta_start: first beta of the linear schedule.
    beta_end: last beta of the linear schedule.

  Returns:
    float64 NumPy array [T].

  Raises:
    ValueError: an argument out of range.
  """
  if schedule not in SCHEDULES:
    names = ', '.join(SCHEDULES)
    raise ValueError(f'schedule is {schedule!r}, expected one of: {names}')
  if num_timesteps < 1:
    raise ValueError(f'num_timesteps is {num_timesteps}, expected at least 1')
  for name, beta in (('beta_start', beta_start), ('beta_end', beta_end)):
    if schedule == 'linear' and not 0 < beta < 1:
      raise ValueError(f'{name} is {beta}, expected between 0 and 1')
  return SCHEDULES[schedule](num_timesteps, beta_start, beta_end)


def timesteps_for(num_timesteps, steps):
  """Evenly spaced timesteps, from T - 1 down to 0 (Nichol and Dhariwal 2021).

  Args:
    num_timesteps: T.
    steps: how many, 1 to T. A single step is at T - 1.

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

  With s = t - 1 these are the paper's. Longer strides are Nichol and Dhariwal's
  (2021, section 3.4); for any alpha and sigma: Kingma et al. 2021,
  "Variational diffusion models", appendix A.

  Args:
    alpha_t: float64 NumPy array [N], of the noisier levels.
    sigma_t: the same.
    alpha_s: of the less noisy levels; 1 for clean images.
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


@dataclasses.dataclass(frozen=True)
class KarrasSpacing:
  """Noise levels that are denser at low noise: Karras et al. 2022, equation 5.

  Attributes:
    sigma_min: sigma (sigma / alpha, if alpha is not 1) of the last step.
    sigma_max: the same of the first step.
    rho: how much denser: 7 in the paper, 1 for an even spacing.

  Raises:
    ValueError: an argument out of range.
  """

  sigma_min: float = 0.002
  sigma_max: float = 80.0
  rho: float = 7.0

  def __post_init__(self):
    if not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
          f'sigma_min is {self.sigma_min} and sigma_max {self.sigma_max},'
          ' expected 0 < sigma_min < sigma_max'
      )
    if not self.rho > 0:
      raise ValueError(f'rho is {self.rho}, expected more than 0')

  def sigmas(self, number, first, last):
    """`number` levels from the first to the last, float64 NumPy array."""
    return self.sigma(np.linspace(0.0, 1.0, number), first, last)

  def sigma(self, fraction, first, last):
    """The level at a fraction of the way from the first to the last."""
    first, last = first ** (1.0 / self.rho), last ** (1.0 / self.rho)
    return (first + fraction * (last - first)) ** self.rho
