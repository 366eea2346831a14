"""How training chooses the noise level of each image.

A choice is a function of an image's own key and of the loss history, which is
part of a run's state. Choices that ignore losses have an empty history. Each
class has three methods:

  initial_history() -> dict of tensors
  draw(keys, history) -> `Draw`
  update_history(history, t, losses) -> the history with a step's losses

Shapes: keys are uint32 [B, 2]; t, weight and quartile are [B].

To add a choice, write its class and its row in NOISE_LEVELS.
"""

import dataclasses
import math
import typing

import tensorflow as tf

from ddpm import rng

# Of Nichol and Dhariwal's code: losses kept per timestep, and the fraction of
# timesteps that are drawn uniformly.
_HISTORY = 10
_UNIFORM_FRACTION = 0.001


class Draw(typing.NamedTuple):
  """The noise levels of a batch.

  Attributes:
    t: timesteps, or sigmas for `process.EDM`.
    weight: float32, of each image's loss; it makes the expected loss that of
      uniformly drawn timesteps.
    quartile: int32, 0 to 3: the quarter of the levels that t lies in.
  """

  t: tf.Tensor
  weight: tf.Tensor
  quartile: tf.Tensor


class _WithoutHistory:
  def initial_history(self):
    return {}

  def update_history(self, history, t, losses):
    del t, losses
    return history


@dataclasses.dataclass(frozen=True)
class Uniform(_WithoutHistory):
  """Timesteps 0 to T - 1, uniformly (Ho et al. 2020, algorithm 1)."""

  num_timesteps: int

  def draw(self, keys, history):
    del history
    t = tf.cast(rng.uniform(keys, ()) * self.num_timesteps, tf.int32)
    weight = tf.ones_like(t, tf.float32)
    return Draw(t, weight, 4 * t // self.num_timesteps)


@dataclasses.dataclass(frozen=True)
class LogNormal(_WithoutHistory):
  """Sigmas with ln sigma ~ N(mean, std^2) (Karras et al. 2022, table 1)."""

  mean: float
  std: float

  def __post_init__(self):
    if not self.std > 0:
      raise ValueError(f'log_sigma_std is {self.std}, expected more than 0')

  def draw(self, keys, history):
    del history
    z = rng.normal(keys, ())
    # The quartiles of the normal distribution.
    quartile = 2.0 * (1.0 + tf.math.erf(z / math.sqrt(2.0)))
    quartile = tf.minimum(tf.cast(quartile, tf.int32), 3)
    return Draw(tf.exp(self.mean + self.std * z), tf.ones_like(z), quartile)


@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
  """Timesteps in proportion to the root mean square of their last 10 losses.

  Nichol and Dhariwal 2021, equation 18, and their code: uniform until every
  timestep has 10 losses.
  """

  num_timesteps: int

  def initial_history(self):
    """The last losses of each timestep, and how many there have been."""
    return {
        'losses': tf.zeros([self.num_timesteps, _HISTORY]),
        'counts': tf.zeros([self.num_timesteps], tf.int64),
    }

  def probabilities(self, history):
    """The probability of each timestep, float32 [T]."""
    weights = tf.sqrt(tf.reduce_mean(tf.square(history['losses']), axis=1))
    p = weights / tf.reduce_sum(weights)
    p = (1.0 - _UNIFORM_FRACTION) * p + _UNIFORM_FRACTION / self.num_timesteps
    warm = tf.reduce_all(history['counts'] >= _HISTORY)
    return tf.where(warm, p, tf.ones_like(p) / self.num_timesteps)

  def draw(self, keys, history):
    # By inverting the distribution function.
    p = self.probabilities(history)
    edges = tf.cumsum(p)
    u = rng.uniform(keys, ()) * edges[-1]
    t = tf.reduce_sum(tf.cast(edges <= u[:, None], tf.int32), axis=1)
    t = tf.minimum(t, self.num_timesteps - 1)
    weight = 1.0 / (self.num_timesteps * tf.gather(p, t))
    return Draw(t, weight, 4 * t // self.num_timesteps)

  def update_history(self, history, t, losses):
    """Adds a batch's losses, in order, each in place of the oldest."""
    same = t[:, None] == t[None, :]
    order = tf.range(tf.size(t))
    before = tf.reduce_sum(
        tf.cast(same & (order[None, :] < order[:, None]), tf.int32), axis=1
    )
    total = tf.reduce_sum(tf.cast(same, tf.int32), axis=1)
    counts = tf.cast(history['counts'], tf.int32)
    place = (tf.gather(counts, t) + before) % _HISTORY
    # Of more than 10 losses of one timestep the last 10 stay. The others are
    # written to a row that is dropped, so that no place is written to twice.
    row = tf.where(total - before <= _HISTORY, t, self.num_timesteps)
    table = tf.pad(history['losses'], [[0, 1], [0, 0]])
    table = tf.tensor_scatter_nd_update(
        table, tf.stack([row, place], axis=1), losses
    )
    counts = tf.tensor_scatter_nd_add(counts, t[:, None], tf.ones_like(t))
    # Bounded, and still telling whether there were 10 and where the oldest is.
    counts = tf.where(
        counts < 2 * _HISTORY, counts, counts % _HISTORY + _HISTORY
    )
    return {'losses': table[:-1], 'counts': tf.cast(counts, tf.int64)}


NOISE_LEVELS = {
    'uniform': Uniform,
    'lognormal': LogNormal,
    'loss_second_moment': LossSecondMoment,
}
