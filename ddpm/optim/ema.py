"""EMAs of the weights: tracked in training, or reconstructed after it.

An ordinary EMA has a decay: Ho et al. 2020. A power-function EMA weighs step t
of n by t^gamma, so that its width relative to n is the same at any step: its
width is sigma_rel, the standard deviation of those weights over n. From
snapshots of two such EMAs any other can be reconstructed after training: Karras
et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(EDM2), section 3 and appendix C.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class EMAs:
  """The EMAs that a run tracks. The first one is sampled from.

  Each starts from the initial weights, without correction, as Ho's.

  Attributes:
    decays: of the ordinary ones.
    power_stds: sigma_rel of the power-function ones.
    rampup_ratio: EDM's, of the ordinary ones: their half-life is at most this
      fraction of the steps done; 0 for none.

  Raises:
    ValueError: an argument out of range, or no EMA at all.
  """

  decays: tuple = ()
  power_stds: tuple = ()
  rampup_ratio: float = 0.0

  def __post_init__(self):
    if not (self.decays or self.power_stds):
      raise ValueError('decays is empty, expected at least one, (0.9999,)')
    for decay in self.decays:
      if not 0 <= decay < 1:
        raise ValueError(f'decays has {decay}, expected at least 0, below 1')
    for std in self.power_stds:
      try:
        power_exponent(std)
      except ValueError as e:
        raise ValueError(f'power_stds has {std}: {e}') from e
    if not self.rampup_ratio >= 0:
      raise ValueError(
          f'rampup_ratio is {self.rampup_ratio}, expected at least 0'
      )

  @property
  def names(self):
    """'0.9999' for a decay, 'power:0.05' for a sigma_rel."""
    return [str(decay) for decay in self.decays] + [
        power_name(std) for std in self.power_stds
    ]

  def update(self, emas, params, step):
    """One step of all EMAs.

    Args:
      emas: dict of float32 [P], by `names`.
      params: float32 [P], the weights after the step.
      step: integer tensor, steps done before this one.

    Returns:
      Dict of float32 [P].
    """
    return {
        name: ema - self.weight(name, step) * (ema - params)
        for name, ema in emas.items()
    }

  def weight(self, name, step):
    """The weight of the new parameters in an EMA, 1 - beta, float32 scalar.

    Not beta, which float32 cannot hold: it is 1 - 2e-7 at step 1e8.

    Args:
      name: one of `names`.
      step: integer tensor, steps done before this one.
    """
    kind, _, number = name.rpartition(':')
    if kind == 'power':
      # Equation 127: beta = (1 - 1/t)^(gamma + 1), with t = 1 for the first.
      t = tf.cast(step + 1, tf.float32)
      exponent = power_exponent(float(number)) + 1.0
      return -tf.math.expm1(exponent * tf.math.log1p(-1.0 / t))
    weight = tf.constant(1.0 - float(number), tf.float32)
    if not self.rampup_ratio:
      return weight
    # The shorter half-life has the greater weight; of 0 steps it is 1.
    half_life = self.rampup_ratio * tf.cast(step, tf.float32)
    return tf.maximum(weight, -tf.math.expm1(-math.log(2.0) / half_life))


def power_name(std):
  """The name of a power-function EMA."""
  return f'power:{std}'


def power_exponent(std):
  """gamma of a power-function EMA, EDM2's algorithm 2.

  Args:
    std: sigma_rel, its relative width.

  Raises:
    ValueError: there is no such EMA.
  """
  if not 0.0 < std < 0.29:
    raise ValueError(
        f"a power-function EMA's std is {std}, expected 0 to 0.29, both"
        ' excluded'
    )
  a = std**-2
  # From std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), equation 123.
  return float(np.roots([1.0, 7.0, 16.0 - a, 12.0 - a]).real.max())


def posthoc_coefficients(steps, stds, target_step, target_std):
  """Coefficients with which snapshots sum to another power-function EMA.

  The least squares of EDM2's algorithm 3: the sum of the snapshots' profiles
  that is closest to the target's profile.

  Args:
    steps: of the N snapshots, each at least 1.
    stds: sigma_rel of each.
    target_step: step of the EMA to reconstruct.
    target_std: its sigma_rel.

  Returns:
    float64 array [N], of sum 1.

  Raises:
    ValueError: a std out of range.
  """
  t = np.array([*steps, target_step], np.float64)
  gamma = np.array([power_exponent(std) for std in [*stds, target_std]])
  products = _inner_products(t[:, None], gamma[:, None], t, gamma)
  # Normalised, so that late profiles are no smaller than early ones. If two are
  # the same, the least squares are still defined.
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
