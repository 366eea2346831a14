"""Adam, its learning rate, gradient clipping and the float16 loss scale.

Pure functions of tensors. All weights are one flat vector [P], so each is a
handful of ops whatever the size of the model.
"""

import dataclasses
import math

import tensorflow as tf

DECAYS = ('constant', 'cosine', 'linear', 'inverse_sqrt')
CLIPS = ('global', 'per_replica')


@dataclasses.dataclass(frozen=True)
class LearningRate:
  """A linear warm-up from 0, as in Ho's code, then a decay.

  Attributes:
    base: the highest rate.
    warmup_steps: steps until the warm-up ends; 0 for none.
    decay: 'constant'; 'cosine' or 'linear', to 0 at decay_steps; or
      'inverse_sqrt', from decay_steps on, as in EDM2 (Karras et al. 2024).
    decay_steps: steps until the rate is 0, or until it begins to fall.

  Raises:
    ValueError: an argument out of range.
  """

  base: float
  warmup_steps: int = 0
  decay: str = 'constant'
  decay_steps: int = 1

  def __post_init__(self):
    if self.decay not in DECAYS:
      raise ValueError(
          f'decay is {self.decay!r}, expected one of: {", ".join(DECAYS)}'
      )
    _at_least('learning_rate', self.base, 0)
    _at_least('warmup_steps', self.warmup_steps, 0)
    _at_least('decay_steps', self.decay_steps, 1)

  def __call__(self, step):
    """The rate, a float32 scalar, after `step` steps, an integer tensor."""
    step = tf.cast(step, tf.float32)
    rate = tf.constant(self.base, tf.float32)
    if self.warmup_steps:
      rate *= tf.minimum(step / self.warmup_steps, 1.0)
    if self.decay == 'constant':
      return rate
    if self.decay == 'inverse_sqrt':
      return rate / tf.sqrt(tf.maximum(step / self.decay_steps, 1.0))
    done = tf.minimum(step / self.decay_steps, 1.0)
    if self.decay == 'linear':
      return rate * (1.0 - done)
    return rate * 0.5 * (1.0 + tf.cos(math.pi * done))  # cosine


@dataclasses.dataclass(frozen=True)
class Clip:
  """Clips the gradient's norm.

  Attributes:
    clip_norm: the largest norm; 0 for no clipping.
    clip: 'global', of the whole batch's gradient; or 'per_replica', Ho's code,
      where each of N replicas clips its share to clip_norm / N, so that
      results depend on N.

  Raises:
    ValueError: an argument out of range.
  """

  clip_norm: float = 0.0
  clip: str = 'global'

  def __post_init__(self):
    if self.clip not in CLIPS:
      raise ValueError(
          f'clip is {self.clip!r}, expected one of: {", ".join(CLIPS)}'
      )
    _at_least('clip_norm', self.clip_norm, 0)

  def share(self, gradient, replicas):
    """Clips one replica's share of the gradient [P], before the sum."""
    if self.clip == 'per_replica' and self.clip_norm:
      gradient, _ = clip_by_norm(gradient, self.clip_norm / replicas)
    return gradient

  def total(self, gradient):
    """Clips the whole gradient [P]; returns it, and its norm before."""
    limit = self.clip_norm if self.clip == 'global' else 0.0
    return clip_by_norm(gradient, limit)


def clip_by_norm(gradient, max_norm):
  """Scales a gradient down to a norm of max_norm (0: any), if it is longer.

  Returns:
    The gradient [P], and its norm before, float32 scalar.
  """
  norm = tf.norm(gradient)
  if max_norm:
    gradient *= max_norm / tf.maximum(norm, max_norm)
  return gradient, norm


@dataclasses.dataclass(frozen=True)
class Adam:
  """Adam (Kingma and Ba 2015, algorithm 1).

  Attributes:
    learning_rate: `LearningRate`.
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    epsilon: added to the second moment's root.

  Raises:
    ValueError: an argument out of range.
  """

  learning_rate: LearningRate
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8

  def __post_init__(self):
    for name in ('beta1', 'beta2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
            f'{name} is {getattr(self, name)}, expected at least 0, below 1'
        )
    if not self.epsilon > 0:
      raise ValueError(f'epsilon is {self.epsilon}, expected more than 0')

  def update(self, params, m, v, gradient, step):
    """One step.

    Args:
      params: float32 [P].
      m: first moment [P].
      v: second moment [P].
      gradient: [P].
      step: integer tensor, steps done before this one.

    Returns:
      New params, m and v.
    """
    beta1, beta2 = self.beta1, self.beta2
    t = tf.cast(step + 1, tf.float32)
    m = beta1 * m + (1.0 - beta1) * gradient
    v = beta2 * v + (1.0 - beta2) * tf.square(gradient)
    m_hat = m / (1.0 - tf.pow(beta1, t))
    v_hat = v / (1.0 - tf.pow(beta2, t))
    rate = self.learning_rate(step)
    return params - rate * m_hat / (tf.sqrt(v_hat) + self.epsilon), m, v


@dataclasses.dataclass(frozen=True)
class LossScale:
  """The dynamic loss scale of float16 (Micikevicius et al. 2018).

  With the constants of Keras' LossScaleOptimizer. Other precisions need none:
  their scale stays 1.

  Attributes:
    dynamic: whether the scale moves.
  """

  dynamic: bool = False

  GROWTH_STEPS = 2000

  @property
  def initial(self):
    return 2.0**15 if self.dynamic else 1.0

  def update(self, scale, good_steps, finite):
    """Halves the scale on an overflow, doubles it after 2000 steps without.

    Args:
      scale: float32 scalar.
      good_steps: int64 scalar, finite steps since the scale last changed.
      finite: bool scalar, whether this step's gradient was finite.

    Returns:
      New scale and good_steps.
    """
    if not self.dynamic:
      return scale, good_steps
    zero = tf.zeros_like(good_steps)
    good_steps = tf.where(finite, good_steps + 1, zero)
    grow = good_steps >= self.GROWTH_STEPS
    grown = tf.where(grow, 2.0 * scale, scale)
    return (
        tf.where(finite, grown, tf.maximum(scale / 2.0, 1.0)),
        tf.where(grow, zero, good_steps),
    )


def _at_least(name, value, least):
  if not value >= least:
    raise ValueError(f'{name} is {value}, expected at least {least}')
