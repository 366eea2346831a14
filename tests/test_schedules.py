"""Schedules and spacings against the papers' formulas."""

import numpy as np
import pytest

from ddpm.diffusion import schedules

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


def test_linear_schedule():
  assert LINEAR.dtype == np.float64
  assert LINEAR[0] == 1e-4 and LINEAR[-1] == 0.02
  # Section 4: the last step is nearly pure noise, about 1e-5 nats from it.
  abar = np.prod([1 - b for b in LINEAR])
  assert abar == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_schedule():
  betas = schedules.betas_for('cosine', 50, beta_start=0, beta_end=0)

  def f(t):
    return np.cos((t / 50 + 0.008) / 1.008 * np.pi / 2) ** 2

  expected = [min(1 - f(t + 1) / f(t), 0.999) for t in range(50)]
  np.testing.assert_allclose(betas, expected, rtol=1e-12)
  assert betas[-1] == 0.999


def test_timesteps():
  assert list(schedules.timesteps_for(1000, 4)) == [999, 666, 333, 0]
  assert list(schedules.timesteps_for(5, 5)) == [4, 3, 2, 1, 0]
  assert list(schedules.timesteps_for(1000, 1)) == [999]
  for steps in (0, 1001):
    with pytest.raises(ValueError, match='expected 1 to 1000'):
      schedules.timesteps_for(1000, steps)


def test_karras_spacing_is_equation_5():
  spacing = schedules.KarrasSpacing()
  i = np.arange(18)
  expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(spacing.sigmas(18, 80, 0.002), expected)
  even = schedules.KarrasSpacing(rho=1.0).sigmas(3, 80, 0)
  np.testing.assert_allclose(even, [80, 40, 0])


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: schedules.betas_for('sqrt', 9, beta_start=0, beta_end=1),
         "schedule is 'sqrt', expected one of: linear, cosine"),
        (lambda: schedules.betas_for('linear', 0, beta_start=0, beta_end=1),
         'num_timesteps is 0, expected at least 1'),
        (lambda: schedules.betas_for('linear', 9, beta_start=0, beta_end=0.1),
         'beta_start is 0, expected between 0 and 1'),
        (lambda: schedules.betas_for('linear', 9, beta_start=0.1, beta_end=2),
         'beta_end is 2, expected between 0 and 1'),
        (lambda: schedules.KarrasSpacing(sigma_min=90.0),
         'sigma_min is 90.0 and sigma_max 80.0, expected'),
        (lambda: schedules.KarrasSpacing(rho=0.0),
         'rho is 0.0, expected more than 0'),
    ],
)  # fmt: skip
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
