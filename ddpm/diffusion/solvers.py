"""Solvers of the reverse process, as coefficients of one loop.

A solver turns its noise levels into rows of coefficients, one row per call of
the network. The loop carries x and one more image m, and a row means

  x' = from_x0 * x_0 + from_x * x + from_previous * m + noise * z
  m' = keep_x0 * x_0 + keep_x * x,   z ~ N(0, I)

where x_0 is the network's estimate, clipped to [-1, 1] if the solver clips.
Everything here is float64 NumPy. Symbols: a step goes from the level t, with
alpha and sigma, to the level s, with alpha_s and sigma_s.

To add a solver, write its function and its row in SOLVERS.
"""

import dataclasses
import math
import typing

import numpy as np

from ddpm.diffusion import schedules


@dataclasses.dataclass(frozen=True)
class Solver:
  """A solver, and how it is used.

  Attributes:
    rows: function (`Path`, eta) -> dict of float64 arrays, the coefficients
      of each row. Missing ones are 0.
    default_steps: steps that make good images; None for all T.
    takes_eta: whether eta sets how much noise it adds.
    karras_spacing: whether its steps are spaced by noise, as in Karras et al.
      2022. Second-order solvers follow lines in sigma / alpha, which may fall
      by a factor of 1000 between two evenly spaced timesteps.
    clips: whether x_0 is clipped to [-1, 1], as in Ho's code.
  """

  rows: typing.Callable
  default_steps: int | None
  takes_eta: bool = False
  karras_spacing: bool = False
  clips: bool = True


class Path(typing.NamedTuple):
  """The levels of N steps, each from (alpha, sigma) to (alpha_s, sigma_s).

  Attributes:
    alpha, sigma: float64 [N], where each step starts, noisiest first.
    alpha_s, sigma_s: float64 [N], where it ends: 1 and 0 for the last.
    levels: columns t, time, alpha and sigma of the starts.
    variance: one of `process.VARIANCES`, for solvers that draw from the
      model's own distribution.
  """

  alpha: np.ndarray
  sigma: np.ndarray
  alpha_s: np.ndarray
  sigma_s: np.ndarray
  levels: dict
  variance: str


def ancestral(path, eta):
  """Equations 6 and 7 of Ho et al. 2020, with the process's variance."""
  del eta
  coef = schedules.posterior(*path[:4])
  is_noisy = path.sigma_s > 0  # the last step adds no noise
  rows = path.levels | {'from_x0': coef['coef_x0'], 'from_x': coef['coef_xt']}
  if path.variance == 'learned_range':
    # The last step's variance is 0, which has no logarithm.
    variance = np.append(coef['variance'][:-1], 1.0)
    return rows | {
        'noise': is_noisy.astype(np.float64),
        'log_beta': np.log(coef['beta']),
        'log_posterior': np.log(variance),
    }
  large = path.variance == 'fixedlarge'
  variance = coef['beta' if large else 'variance']
  return rows | {'noise': np.sqrt(variance) * is_noisy}


def ddim(path, eta):
  """Equation 12 of Song et al. 2021; eta 1 has the posterior's variance."""
  coef = schedules.posterior(*path[:4])
  return _first_order(path, noise=eta * np.sqrt(coef['variance']))


def dpmpp_2m(path, eta):
  """Algorithm 2 of Lu et al. 2022, "DPM-Solver++"; eta 1 is their SDE form.

  With h the step in lambda = log(alpha / sigma), and r = h_previous / h, x_0
  is extrapolated from the previous estimate m: it becomes
  (1 + 1 / (2 r)) x_0 - 1 / (2 r) m. The first step has no previous estimate;
  the last one takes none, since lambda is infinite at its end. eta between 0
  and 1 is as in k-diffusion.
  """
  alpha, sigma, alpha_s, sigma_s = path[:4]
  stays = (sigma_s / alpha_s * alpha / sigma) ** eta  # exp(-eta h)
  rows = _first_order(path, noise=sigma_s * np.sqrt(1.0 - stays**2))
  h = np.diff(np.log(alpha / sigma))  # [N - 1], of all steps but the last
  extra = np.zeros(len(alpha))
  extra[1:-1] = h[1:] / (2.0 * h[:-1])  # 1 / (2 r)
  return rows | {
      'from_x0': (1.0 + extra) * rows['from_x0'],
      'from_previous': -extra * rows['from_x0'],
      'keep_x0': np.ones(len(alpha)),
  }


def heun(path, eta):
  """Algorithm 1 of Karras et al. 2022, which calls the network 2 N - 1 times.

  In x / alpha, with s = sigma / alpha, the slope is d = (x - x_0) / s. Each
  step but the last has two rows: the first goes the whole step along d and
  keeps where half of it leads, the second adds half of the slope found there.
  """
  del eta
  rows = _first_order(path, noise=np.zeros(len(path.alpha)))
  alpha, sigma = path.alpha, path.sigma
  n = len(alpha)
  s = sigma / alpha
  half = np.append(np.diff(s), 0.0) / 2.0
  end = path.alpha_s
  predict = rows | {
      'from_previous': np.zeros(n),
      'keep_x0': -end * half / s,
      'keep_x': end * (1.0 + half / s) / alpha,
  }
  i = np.arange(n - 1)  # steps with a second row, at the level where they end
  correct = {name: column[i + 1] for name, column in rows.items()} | {
      'from_x0': -end[i] * half[i] / s[i + 1],
      'from_x': end[i] * half[i] / s[i + 1] / alpha[i + 1],
      'from_previous': np.ones(n - 1),
      'keep_x0': np.zeros(n - 1),
      'keep_x': np.zeros(n - 1),
  }
  both = {}
  for name, column in predict.items():
    both[name] = np.empty(2 * n - 1, column.dtype)
    both[name][::2], both[name][1::2] = column, correct[name]
  return both


def _first_order(path, *, noise):
  """x_s = alpha_s x_0 + sqrt(sigma_s^2 - noise^2) eps + noise z.

  eps = (x - alpha x_0) / sigma is the network's estimate of the noise in x.
  """
  alpha, sigma, alpha_s, sigma_s = path[:4]
  ratio = np.sqrt(sigma_s**2 - noise**2) / sigma
  return path.levels | {
      'from_x0': alpha_s - alpha * ratio, 'from_x': ratio, 'noise': noise,
  }  # fmt: skip


COEFFICIENTS = (
    'from_x0', 'from_x', 'from_previous', 'noise', 'keep_x0', 'keep_x'
)  # fmt: skip
SOLVERS = {
    'ancestral': Solver(ancestral, default_steps=None),
    'ddim': Solver(ddim, default_steps=50, takes_eta=True),
    'dpmpp_2m': Solver(
        dpmpp_2m, default_steps=25, takes_eta=True, karras_spacing=True
    ),
    'heun': Solver(heun, default_steps=18, karras_spacing=True, clips=False),
}
# In words, for messages.
TAKE_ETA = ' and '.join(n for n, s in SOLVERS.items() if s.takes_eta)


@dataclasses.dataclass(frozen=True)
class SamplerSpec:
  """A sampler and its settings.

  Attributes:
    sampler: a name in SOLVERS.
    steps: of the reverse process, 1 to T.
    eta: noise that ddim and dpmpp_2m add on the way: 0 for none, 1 for the
      most.
    guidance: scale of classifier-free guidance; 1 for none.

  Raises:
    ValueError: an argument out of range.
  """

  sampler: str
  steps: int
  eta: float = 0.0
  guidance: float = 1.0

  def __post_init__(self):
    solver = _solver(self.sampler)
    if self.steps < 1:
      raise ValueError(f'steps is {self.steps}, expected at least 1')
    if not 0.0 <= self.eta <= 1.0:
      raise ValueError(f'eta is {self.eta}, expected 0 to 1')
    if self.eta and not solver.takes_eta:
      raise ValueError(
          f'eta is {self.eta}, which only {TAKE_ETA} take, but the sampler is'
          f' {self.sampler}'
      )
    if not math.isfinite(self.guidance):
      raise ValueError(f'guidance is {self.guidance}, expected a finite number')

  @property
  def clips(self):
    """Whether each estimate of x_0 is clipped to [-1, 1]."""
    return SOLVERS[self.sampler].clips


def steps_for(process, sampler, number, *, strength=1.0):
  """The `process.Steps` of a sampler: `number` of them, spaced as it needs."""
  spacing = SOLVERS[sampler].karras_spacing
  return process.steps(number, karras_spacing=spacing, strength=strength)


def table(process, steps, *, sampler, eta=0.0):
  """The rows of a sampler's loop.

  Args:
    process: of `process`.
    steps: its `process.Steps`, N of them.
    sampler: a name in SOLVERS.
    eta: noise, of solvers that take it: 0 for none, 1 for the most.

  Returns:
    Dict of NumPy arrays [rows], float64 but for the integer 't': t, time, alpha
    and sigma of each level; its c_in, c_skip and c_out; and the coefficients
    named at the top of this file. With a learned variance also log_beta and
    log_posterior, between which the log-variance of the step lies.

  Raises:
    ValueError: an unknown sampler.
  """
  solver = _solver(sampler)
  path = Path(
      steps.alpha,
      steps.sigma,
      np.append(steps.alpha[1:], 1.0),
      np.append(steps.sigma[1:], 0.0),
      steps._asdict(),
      process.variance,
  )
  rows = solver.rows(path, eta)
  zeros = np.zeros(len(rows['t']))
  of_network = process.preconditioning(rows['alpha'], rows['sigma'])._asdict()
  rows |= {name: zeros + column for name, column in of_network.items()}
  return dict.fromkeys(COEFFICIENTS, zeros) | rows


def default_steps(sampler, num_timesteps):
  """Steps of a sampler if the user names no number."""
  few = _solver(sampler).default_steps
  return num_timesteps if few is None else min(few, num_timesteps)


def _solver(sampler):
  if sampler not in SOLVERS:
    raise ValueError(
        f'sampler is {sampler!r}, expected one of: {", ".join(SOLVERS)}'
    )
  return SOLVERS[sampler]
