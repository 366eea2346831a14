"""Averages of the weights: tracked in training, or built after it.

A plain average has a decay: Ho et al. 2020. A power-function average weighs
step t of n by t^gamma, so that it is as wide, in relation to n, at any step:
its width is sigma_rel, the standard deviation of those weights over n. From
snapshots of two such averages any other can be built after training: Karras et
al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(EDM2), section 3 and appendix C.
"""

import math

import numpy as np
import tensorflow as tf


def names(decays, power_stds):
  """Names of averages: '0.9999' of a decay, 'power:0.05' of a sigma_rel."""
  return [str(decay) for decay in decays] + [
      f'power:{std}' for std in power_stds
  ]


def share_at(name, step, *, rampup_ratio):
  """The share of the new weights in the average, 1 - beta, after a step.

  Not beta, which float32 cannot hold: it is 1 - 2e-7 at step 1e8.

  Args:
    name: one of `names`.
    step: integer tensor, steps done before this one.
    rampup_ratio: of a plain average, EDM's: its half-life is at most this
      share of the steps done; 0 for none.

  Returns:
    float32 scalar.
  """
  kind, _, number = name.rpartition(':')
  if kind == 'power':
    # Equation 127: beta = (1 - 1/t)^(gamma + 1), with t = 1 for the first.
    t = tf.cast(step + 1, tf.float32)
    exponent = power_exponent(float(number)) + 1.0
    return -tf.math.expm1(exponent * tf.math.log1p(-1.0 / t))
  share = tf.constant(1.0 - float(number), tf.float32)
  if not rampup_ratio:
    return share
  # The shorter half-life is the greater share. That of 0 steps is all.
  half_life = rampup_ratio * tf.cast(step, tf.float32)
  return tf.maximum(share, -tf.math.expm1(-math.log(2.0) / half_life))


def update(average, params, share):
  """One step of an average, from its own start (no correction), as Ho's.

  Args:
    average: float32 [P].
    params: float32 [P], the weights after the step.
    share: float32 scalar, theirs in the new average.

  Returns:
    float32 [P].
  """
  return average - share * (average - params)


def power_exponent(std):
  """gamma of a power-function average, EDM2's algorithm 2.

  Args:
    std: sigma_rel, its relative width.

  Raises:
    ValueError: there is no such average.
  """
  if not 0.0 < std < 0.29:
    raise ValueError(
        f'the std of a power-function average is {std}, expected 0 to 0.29,'
        ' both excluded'
    )
  a = std**-2
  # From std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), equation 123.
  return float(np.roots([1.0, 7.0, 16.0 - a, 12.0 - a]).real.max())


def posthoc_coefficients(steps, stds, target_step, target_std):
  """What to multiply snapshots with, so that they sum to another average.

  The least squares of EDM2's algorithm 3: of all sums of the snapshots'
  profiles, the closest to the profile of the average that is asked for.

  Args:
    steps: of the N snapshots, each at least 1.
    stds: sigma_rel of each.
    target_step: step of the average asked for.
    target_std: its sigma_rel.

  Returns:
    float64 array [N], of sum 1.

  Raises:
    ValueError: a std out of range.
  """
  t = np.array([*steps, target_step], np.float64)
  gamma = np.array([power_exponent(std) for std in [*stds, target_std]])
  products = _inner_products(t[:, None], gamma[:, None], t, gamma)
  # Of profiles of length 1: late ones are no smaller than early ones. Where
  # two are the same, the least squares are still defined.
  length = np.sqrt(np.diag(products))
  products /= np.outer(length, length)
  x = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1])[0] / length[:-1]
  return x / x.sum()


def _inner_products(t_a, gamma_a, t_b, gamma_b):
  """Of profiles (gamma + 1) u^gamma / t^(gamma + 1), 0 <= u <= t: eq. 151."""
  first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
  gamma_last = np.where(t_a < t_b, gamma_b, gamma_a)
  norm = (gamma_a + 1.0) * (gamma_b + 1.0) / (gamma_a + gamma_b + 1.0)
  return norm * (first / last) ** gamma_last / last
