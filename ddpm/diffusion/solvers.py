""""""

import numpy as np

from ddpm.diffusion import schedules

SAMPLERS = ('ancestral', 'ddim', 'dpmpp_2m', 'heun')

_TAKE_ETA = ('ddim', 'dpmpp_2m')


def steps_for(diffusion, sampler, number, *, at=1.0):
  """The `process.Steps` that a sampler takes.

  Those of second order go along lines in sigma / alpha, which evenly spaced
  timesteps may cut to a thousandth in one step: they take Karras et al.'s.
  """
  by_noise = sampler in ('dpmpp_2m', 'heun')
  return diffusion.steps(number, by_noise=by_noise, at=at)


def table(diffusion, steps, *, sampler, eta=0.0):
  """The table of a sampler.

  Args:
    diffusion: of `diffusion`, the process.
    steps: its `process.Steps`, N of them.
    sampler: 'ancestral', equations 6 and 7 of Ho et al. 2020, with the
      process's variance; 'ddim', equation 12 of Song et al. 2021; 'dpmpp_2m',
      algorithm 2 of Lu et al. 2022, "DPM-Solver++"; 'heun', algorithm 1 of
      Karras et al. 2022, which asks the network 2 N - 1 times.
    eta: of ddim, 0 for no noise, 1 for the posterior's; of dpmpp_2m, 1 for
      their SDE-DPM-Solver++, and between as in k-diffusion.

  Returns:
    Dict of NumPy arrays [rows], float64 but for the number 't': the levels'
    alpha, sigma and time, and the coefficients of the loop; with a learned
    variance log_beta and log_posterior, between which a step's lies, too. The
    last step adds no noise.

  Raises:
    ValueError: an unknown sampler.
  """
  if sampler not in SAMPLERS:
    raise ValueError(f'sampler is {sampler!r}, expected one of {SAMPLERS}')
  alpha, sigma = steps.alpha, steps.sigma
  # Where each step goes to; the last one's end is the clean image.
  alpha_s, sigma_s = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
  zeros = np.zeros(len(alpha))
  rows = {
      't': steps.t, 'time': steps.time, 'alpha': alpha, 'sigma': sigma,
      'x_m': zeros, 'm_x0': zeros, 'm_x': zeros, 'noise': zeros,
  }  # fmt: skip
  if sampler == 'ancestral':
    coef = schedules.posterior(alpha, sigma, alpha_s, sigma_s)
    rows |= {'x_x0': coef['coef_x0'], 'x_x': coef['coef_xt']}
    if diffusion.variance == 'learned_range':
      # The last step, which adds no noise, has no logarithm.
      variance = np.append(coef['variance'][:-1], 1.0)
      return rows | {
          'noise': (sigma_s > 0).astype(np.float64),
          'log_beta': np.log(coef['beta']),
          'log_posterior': np.log(variance),
      }
    large = diffusion.variance == 'fixedlarge'
    noise = coef['beta' if large else 'variance']
    return rows | {'noise': np.sqrt(noise) * (sigma_s > 0)}
  # What the others have in their first order: a part of the noise stays, in
  # eps = (x_t - alpha_t x_0) / sigma_t, and the rest is new.
  noise = zeros
  if sampler == 'ddim':
    coef = schedules.posterior(alpha, sigma, alpha_s, sigma_s)
    noise = eta * np.sqrt(coef['variance'])
  elif sampler == 'dpmpp_2m':
    stays = (sigma_s / alpha_s * alpha / sigma) ** eta  # exp(-eta h)
    noise = sigma_s * np.sqrt(1.0 - stays**2)
  ratio = np.sqrt(sigma_s**2 - noise**2) / sigma
  rows |= {'x_x0': alpha_s - alpha * ratio, 'x_x': ratio, 'noise': noise}
  if sampler == 'dpmpp_2m':
    rows |= _second_order(alpha, sigma, rows['x_x0'])
  elif sampler == 'heun':
    rows = _heun(rows)
  return rows


def default_steps(sampler, num_timesteps):
  """Steps that make good images, for who names a sampler and no number."""
  # Ancestral is the process itself; the others are made for few steps.
  few = {'ancestral': num_timesteps, 'ddim': 50, 'dpmpp_2m': 25, 'heun': 18}
  return min(few[sampler], num_timesteps)


def check_eta(sampler, eta, name):
  """Raises ValueError if a sampler has no such eta."""
  if not 0.0 <= eta <= 1.0:
    raise ValueError(f'{name} is {eta}, expected 0 to 1')
  if eta and sampler not in _TAKE_ETA:
    raise ValueError(
        f'{name} is {eta}, which is of {" and ".join(_TAKE_ETA)}, but the'
        f' sampler is {sampler}'
    )


def _second_order(alpha, sigma, x_x0):
  """The multistep part: x_0 is extrapolated from the guess before it.

  With h the step in lambda = log(alpha / sigma), x_0 becomes
  (1 + 1 / (2 r)) x_0 - 1 / (2 r) m with r = h_before / h. The first step has no
  guess before it, and the last one, to where lambda has no end, takes none.
  """
  h = np.diff(np.log(alpha / sigma))  # [N - 1], of steps 0 to N - 2
  extra = np.zeros(len(alpha))
  extra[1:-1] = h[1:] / (2.0 * h[:-1])
  return {
      'x_x0': (1.0 + extra) * x_x0,
      'x_m': -extra * x_x0,
      'm_x0': np.ones(len(alpha)),
  }


def _heun(rows):
  """Each step but the last asks twice: at its start, and where that leads.

  In x / alpha and s = sigma / alpha the slope is d = (x - x_0) / s. The first
  row goes the whole step along it, and remembers where half of it leads; the
  second one adds its half.
  """
  alpha, sigma = rows['alpha'], rows['sigma']
  n = len(alpha)
  s = sigma / alpha
  half = np.append(np.diff(s), 0.0) / 2.0
  end = np.append(alpha[1:], 1.0)
  start = rows | {
      'm_x0': -end * half / s,
      'm_x': end * (1.0 + half / s) / alpha,
  }  # fmt: skip
  # Of step i, at the level that it goes to.
  i = np.arange(n - 1)
  finish = {name: column[i + 1] for name, column in rows.items()}
  finish |= {
      'x_x0': -end[i] * half[i] / s[i + 1],
      'x_x': end[i] * half[i] / s[i + 1] / alpha[i + 1],
      'x_m': np.ones(n - 1),
  }
  both = {}
  for name, column in start.items():
    both[name] = np.empty(2 * n - 1, column.dtype)
    both[name][::2], both[name][1::2] = column, finish[name]
  return both
