"""Training losses of a diffusion process."""

import dataclasses

import tensorflow as tf

from ddpm.diffusion import process as process_lib
from ddpm.diffusion import variational_bound
from ddpm.diffusion.process import per_image

LOSSES = ('simple', 'min_snr', 'vlb', 'hybrid')


@dataclasses.dataclass(frozen=True)
class Loss:
  """The training loss of each image.

  - simple: L_simple, equation 14 of Ho et al. 2020: the squared error of the
    network's prediction, averaged over an image. With EDM's process this is
    the weighted loss of Karras et al. 2022, as a mean where theirs is a sum.
  - min_snr: the squared error of x_0, weighted by min(SNR, gamma) (Hang et al.
    2023).
  - vlb: T times the bound's term at t, in bits per dimension.
  - hybrid: simple + vlb / 1000, where the bound trains the variance only
    (Nichol and Dhariwal 2021, equation 16; the 1000 is their code's).

  Attributes:
    process: `process.Process`.
    loss: one of LOSSES.
    min_snr_gamma: gamma of min_snr.

  Raises:
    ValueError: an unknown loss, or one that the process does not have.
  """

  process: process_lib.Process
  loss: str = 'simple'
  min_snr_gamma: float = 5.0

  def __post_init__(self):
    if self.loss not in LOSSES:
      raise ValueError(
          f'loss is {self.loss!r}, expected one of: {", ".join(LOSSES)}'
      )
    bound = self.loss in ('vlb', 'hybrid')
    if bound and isinstance(self.process, process_lib.EDM):
      raise ValueError(
          f'loss is {self.loss!r}, which the schedule edm does not have:'
          ' expected simple or min_snr'
      )
    learned = self.process.variance == 'learned_range'
    if (learned and not bound) or (self.loss == 'hybrid' and not learned):
      raise ValueError(
          f'loss is {self.loss!r} and variance {self.process.variance!r}: the'
          ' losses hybrid and vlb learn a learned_range, and hybrid needs it'
      )
    if not self.min_snr_gamma > 0:
      raise ValueError(
          f'min_snr_gamma is {self.min_snr_gamma}, expected more than 0'
      )

  @property
  def terms(self):
    """Names of the terms: 'loss', then the parts that it is the sum of."""
    return ('loss', 'mse', 'vb') if self.loss == 'hybrid' else ('loss',)

  def __call__(self, network, x0, t, noise):
    """Computes the loss.

    Args:
      network: function (x, time) -> float32 [B, H, W, C], or [B, H, W, 2 C]
        with a learned variance.
      x0: images, float32 [B, H, W, C].
      t: [B], their timesteps, or sigmas with EDM's process.
      noise: standard normal, as x0.

    Returns:
      Dict of float32 [B], one of each of `terms`.
    """
    process = self.process
    level = process.level(t)
    xt = per_image(level.alpha) * x0 + per_image(level.sigma) * noise
    output, share = process.split(
        network(per_image(level.c_in) * xt, level.time)
    )

    def bound(output):
      estimate = per_image(level.c_skip) * xt + per_image(level.c_out) * output
      term = variational_bound.bound_term(process, x0, xt, t, estimate, share)
      return process.num_timesteps * term

    if self.loss == 'vlb':
      return {'loss': bound(output)}
    error = tf.square(process.target(x0, level, noise) - output)
    mse = tf.reduce_mean(error, axis=[1, 2, 3])
    if self.loss == 'simple':
      return {'loss': mse}
    if self.loss == 'min_snr':
      return {'loss': mse * _min_snr_weight(level, self.min_snr_gamma)}
    vb = bound(tf.stop_gradient(output)) / 1000.0
    return {'loss': mse + vb, 'mse': mse, 'vb': vb}


def _min_snr_weight(level, gamma):
  """min(SNR, gamma) c_out^2: x_0's error is c_out times the network's."""
  snr = (level.alpha / level.sigma) ** 2
  return tf.minimum(snr, gamma) * level.c_out**2
