"""Adam, its rate, the clip of gradients and the float16 loss scale.

Pure functions of tensors: all weights are one flat vector [P], so that each
is a handful of ops whatever the size of the model.
"""

import math

import tensorflow as tf

DECAYS = ('constant', 'cosine', 'linear', 'inverse_sqrt')
CLIPS = ('global', 'per_replica')

# The dynamic loss scale of Micikevicius et al. 2018, with the constants of
# Keras' LossScaleOptimizer.
INITIAL_LOSS_SCALE = 2.0**15
LOSS_SCALE_GROWTH_STEPS = 2000


def learning_rate(step, *, base, warmup_steps, decay, decay_steps):
  """The rate of a step: linear warm-up from 0 as in Ho's code, then decay.

  Args:
    step: integer tensor, steps done so far.
    base: highest rate.
    warmup_steps: steps until the warm-up ends; 0 for none.
    decay: 'constant'; 'cosine' or 'linear', to 0 at decay_steps; or
      'inverse_sqrt', from decay_steps on, as in EDM2 (Karras et al. 2024).
    decay_steps: steps until the rate is 0, or until it begins to fall.

  Returns:
    float32 scalar.
  """
  step = tf.cast(step, tf.float32)
  rate = tf.constant(base, tf.float32)
  if warmup_steps:
    rate *= tf.minimum(step / warmup_steps, 1.0)
  if decay == 'constant':
    return rate
  if decay == 'inverse_sqrt':
    return rate / tf.sqrt(tf.maximum(step / decay_steps, 1.0))
  done = tf.minimum(step / decay_steps, 1.0)
  if decay == 'linear':
    return rate * (1.0 - done)
  if decay == 'cosine':
    return rate * 0.5 * (1.0 + tf.cos(math.pi * done))
  raise ValueError(f'decay is {decay!r}, expected one of {DECAYS}')


def clip(gradient, max_norm):
  """Scales a gradient down to a norm of max_norm, if it is longer.

  Returns:
    The gradient [P], and its norm before, float32 scalar.
  """
  norm = tf.norm(gradient)
  if max_norm:
    gradient *= max_norm / tf.maximum(norm, max_norm)
  return gradient, norm


def adam(params, m, v, gradient, step, *, rate, beta1, beta2, epsilon):
  """One step of Adam (Kingma and Ba 2015, algorithm 1).

  Args:
    params: float32 [P].
    m: first moment [P].
    v: second moment [P].
    gradient: [P].
    step: integer tensor, steps done before this one.
    rate: learning rate.
    beta1: decay of m.
    beta2: decay of v.
    epsilon: added to the root of v.

  Returns:
    New params, m and v.
  """
  t = tf.cast(step + 1, tf.float32)
  m = beta1 * m + (1.0 - beta1) * gradient
  v = beta2 * v + (1.0 - beta2) * tf.square(gradient)
  m_hat = m / (1.0 - tf.pow(beta1, t))
  v_hat = v / (1.0 - tf.pow(beta2, t))
  return params - rate * m_hat / (tf.sqrt(v_hat) + epsilon), m, v


def next_loss_scale(scale, good_steps, finite):
  """Halves the scale on an overflow, doubles it after 2000 steps without one.

  Args:
    scale: float32 scalar.
    good_steps: int32 scalar, finite steps since the scale last changed.
    finite: bool scalar, whether this step's gradient was.

  Returns:
    New scale and good_steps.
  """
  good_steps = tf.where(finite, good_steps + 1, 0)
  grow = good_steps >= LOSS_SCALE_GROWTH_STEPS
  grown = tf.where(grow, 2.0 * scale, scale)
  return (
      tf.where(finite, grown, tf.maximum(scale / 2.0, 1.0)),
      tf.where(grow, 0, good_steps),
  )
