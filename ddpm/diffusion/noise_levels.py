"""How training chooses the noise level of each image.

Each choice is a function of an image's own key, and of what is remembered of
losses, which is part of a run's state: `initial` makes it, `remember` moves it
on. Shapes: keys are uint32 [B, 2], t, weight and quartile are [B].
"""

import math
import typing

import tensorflow as tf

from ddpm import rng

SAMPLERS = ('uniform', 'lognormal', 'loss_second_moment')

# Of Nichol and Dhariwal's code: losses kept of each timestep, and the share of
# timesteps that are drawn whatever their losses.
_HISTORY = 10
_UNIFORM_SHARE = 0.001


class Draw(typing.NamedTuple):
  """The noise levels of a batch.

  Attributes:
    t: as a process takes it: timesteps, or sigmas for `process.EDM`.
    weight: float32, of an image's loss, so that its expectation is that of
      evenly drawn ones.
    quartile: int32, 0 to 3: in which quarter of the levels t lies.
  """

  t: tf.Tensor
  weight: tf.Tensor
  quartile: tf.Tensor


class Uniform:
  """Timesteps 0 to T - 1, each as likely (Ho et al. 2020, algorithm 1)."""

  def __init__(self, num_timesteps):
    self._num_timesteps = num_timesteps

  def initial(self):
    return {}

  def remember(self, memory, t, losses):
    return memory

  def draw(self, keys, memory):
    t = tf.cast(rng.uniform(keys, ()) * self._num_timesteps, tf.int32)
    weight = tf.ones_like(t, tf.float32)
    return Draw(t, weight, 4 * t // self._num_timesteps)


class LogNormal:
  """Sigmas with ln sigma ~ N(mean, std^2) (Karras et al. 2022, table 1)."""

  def __init__(self, mean, std):
    self._mean = mean
    self._std = std

  def initial(self):
    return {}

  def remember(self, memory, t, losses):
    return memory

  def draw(self, keys, memory):
    z = rng.normal(keys, ())
    # Quarters of what is drawn: the normal distribution's quantiles.
    quartile = 2.0 * (1.0 + tf.math.erf(z / math.sqrt(2.0)))
    quartile = tf.minimum(tf.cast(quartile, tf.int32), 3)
    return Draw(tf.exp(self._mean + self._std * z), tf.ones_like(z), quartile)


class LossSecondMoment:
  """Timesteps by the root mean square of their last 10 losses.

  Nichol and Dhariwal 2021, equation 18, and their code: even until there are
  10 losses of every timestep.
  """

  def __init__(self, num_timesteps):
    self._num_timesteps = num_timesteps

  def initial(self):
    """The memory at step 0: the last losses, and how many there have been."""
    return {
        'losses': tf.zeros([self._num_timesteps, _HISTORY]),
        'counts': tf.zeros([self._num_timesteps], tf.int32),
    }

  def probabilities(self, memory):
    """How likely each timestep is, float32 [T]."""
    weights = tf.sqrt(tf.reduce_mean(tf.square(memory['losses']), axis=1))
    p = weights / tf.reduce_sum(weights)
    p = (1.0 - _UNIFORM_SHARE) * p + _UNIFORM_SHARE / self._num_timesteps
    warm = tf.reduce_all(memory['counts'] >= _HISTORY)
    return tf.where(warm, p, tf.ones_like(p) / self._num_timesteps)

  def draw(self, keys, memory):
    p = self.probabilities(memory)
    edges = tf.cumsum(p)
    u = rng.uniform(keys, ()) * edges[-1]
    t = tf.reduce_sum(tf.cast(edges <= u[:, None], tf.int32), axis=1)
    t = tf.minimum(t, self._num_timesteps - 1)
    weight = 1.0 / (self._num_timesteps * tf.gather(p, t))
    return Draw(t, weight, 4 * t // self._num_timesteps)

  def remember(self, memory, t, losses):
    """Takes in a batch's losses, in its order, each in the oldest's place."""
    same = t[:, None] == t[None, :]
    order = tf.range(tf.size(t))
    before = tf.reduce_sum(
        tf.cast(same & (order[None, :] < order[:, None]), tf.int32), axis=1
    )
    total = tf.reduce_sum(tf.cast(same, tf.int32), axis=1)
    place = (tf.gather(memory['counts'], t) + before) % _HISTORY
    # Of more than 10 losses of one timestep the last 10 stay: the others go
    # where no timestep is, so that no place is written to twice.
    row = tf.where(total - before <= _HISTORY, t, self._num_timesteps)
    table = tf.pad(memory['losses'], [[0, 1], [0, 0]])
    table = tf.tensor_scatter_nd_update(
        table, tf.stack([row, place], axis=1), losses
    )
    counts = tf.tensor_scatter_nd_add(
        memory['counts'], t[:, None], tf.ones_like(t)
    )
    # Enough to know that there were 10, and where the oldest is.
    counts = tf.where(
        counts < 2 * _HISTORY, counts, counts % _HISTORY + _HISTORY
    )
    return {'losses': table[:-1], 'counts': counts}
