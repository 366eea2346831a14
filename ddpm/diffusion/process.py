"""The forward process, and what the network predicts of it.

Two processes noise an image, x_t = alpha_t x_0 + sigma_t noise:

  Diffusion  T levels, alpha^2 + sigma^2 = 1 (Ho, Jain and Abbeel 2020)
  EDM        any level, alpha = 1 (Karras et al. 2022)

Equation numbers are those of Ho et al. 2020, "Denoising diffusion
probabilistic models", unless another paper is named. Timesteps t are integers
in [0, T): t here is the paper's t - 1, so `alphas_cumprod[t]` is its
\\bar\\alpha_{t+1}.

Coefficients of a level are computed in float64 NumPy, or by formulas that keep
their digits in float32: 1 - alpha c_skip would lose them all. Accelerators
have no, or slow, float64.

Shapes: images, noise and outputs are float32 [B, H, W, C]; t is [B], int32
timesteps for `Diffusion` and float32 sigmas for `EDM`.
"""

import typing

import numpy as np
import tensorflow as tf

from ddpm.diffusion import schedules

VARIANCES = ('fixedlarge', 'fixedsmall', 'learned_range')


def eps(alpha, sigma):
  """The noise: equation 15 solved for x_0."""
  return 1.0 / alpha, -sigma / alpha


def x0(alpha, sigma):
  """The clean image."""
  del alpha, sigma
  return 0.0, 1.0


def v(alpha, sigma):
  """v = alpha noise - sigma x_0 (Salimans and Ho 2022)."""
  return alpha, -sigma


def edm(alpha, sigma, sigma_data=0.5):
  """F of Karras et al. 2022, table 1; alpha is 1."""
  del alpha
  total = sigma**2 + sigma_data**2
  return sigma_data**2 / total, sigma * sigma_data / total**0.5


_SPACING = schedules.KarrasSpacing()

# What the network's output F means: each gives (c_skip, c_out) of a level, and
# x_0 = c_skip x_t + c_out F. The training target and the weights of the losses
# follow from them.
PREDICTIONS = {'eps': eps, 'x0': x0, 'v': v, 'edm': edm}


class Level(typing.NamedTuple):
  """How noisy each image is. All are float32 [B].

  Attributes:
    alpha: scale of the image.
    sigma: standard deviation of the noise.
    time: the network's time input.
    c_in, c_skip, c_out: its `Preconditioning`.
    of_x0, of_noise: the network's target is of_x0 x_0 + of_noise noise.
  """

  alpha: tf.Tensor
  sigma: tf.Tensor
  time: tf.Tensor
  c_in: tf.Tensor
  c_skip: tf.Tensor
  c_out: tf.Tensor
  of_x0: tf.Tensor
  of_noise: tf.Tensor


class Steps(typing.NamedTuple):
  """The levels that a sampler visits, noisiest first.

  Attributes:
    alpha, sigma, time: float64 NumPy arrays [N]; see `Level`.
    t: int64 NumPy array [N], numbers of the levels, falling.
  """

  alpha: np.ndarray
  sigma: np.ndarray
  time: np.ndarray
  t: np.ndarray


class Preconditioning(typing.NamedTuple):
  """Coefficients of a level, in the notation of Karras et al. 2022.

  The network sees c_in x_t; its output F gives x_0 = c_skip x_t + c_out F.

  Attributes:
    c_in, c_skip, c_out: shaped as the levels' alpha, or constants.
  """

  c_in: typing.Any
  c_skip: typing.Any
  c_out: typing.Any


class Process:
  """What both processes share.

  Attributes:
    prediction: a name in PREDICTIONS.
    variance: of the steps back, one of VARIANCES.
    num_timesteps: T, the most steps that a sampler may take.
    prior_sigma: standard deviation of the noise that sampling starts from.
  """

  def steps(self, number, *, karras_spacing, strength=1.0):
    """The `Steps` of a sampler that takes `number` of them."""
    raise NotImplementedError

  def level(self, t):
    """The `Level` of each image's t."""
    raise NotImplementedError

  def preconditioning(self, alpha, sigma):
    """The `Preconditioning` of levels; of float64 NumPy arrays, in float64."""
    c_skip, c_out = PREDICTIONS[self.prediction](alpha, sigma)
    return Preconditioning(1.0, c_skip, c_out)

  def q_sample(self, x0, t, noise):
    """Draws from q(x_t | x_0), equation 4: x_t for the given noise."""
    level = self.level(t)
    return per_image(level.alpha) * x0 + per_image(level.sigma) * noise

  def target(self, x0, level, noise):
    """The network's target F = (x_0 - c_skip x_t) / c_out, x_t substituted."""
    return per_image(level.of_x0) * x0 + per_image(level.of_noise) * noise

  def denoise(self, network, xt, level):
    """Estimates x_0 from x_t.

    Args:
      network: function (x, time) -> float32 [B, H, W, C], or [B, H, W, 2 C]
        with a learned variance.
      xt: noised images.
      level: their `Level`.

    Returns:
      The estimate of x_0, not clipped, and the variance's share as in `split`.
    """
    output, share = self.split(
        network(per_image(level.c_in) * xt, level.time)
    )
    estimate = per_image(level.c_skip) * xt + per_image(level.c_out) * output
    return estimate, share

  def split(self, output):
    """Splits the network's output into F and the learned variance's share.

    Returns:
      F [B, H, W, C], and where the log-variance lies between the posterior's,
      0, and beta's, 1 (Nichol and Dhariwal 2021, equation 15), [B, H, W, C];
      None if the variance is not learned.
    """
    if self.variance != 'learned_range':
      return output, None
    output, share = tf.split(output, 2, axis=-1)
    return output, (share + 1.0) / 2.0


class Diffusion(Process):
  """A forward process of T steps.

  Attributes:
    betas: float64 NumPy array [T], variances of the steps.
    alphas_cumprod: float64 NumPy array [T], \\bar\\alpha_{t+1} of the paper.

  Args:
    betas: float64 [T], from `schedules.betas_for`.
    prediction: what the network predicts: 'eps', 'x0' or 'v'.
    variance: of the steps back: 'fixedlarge' (beta_t), 'fixedsmall' (the
      posterior's), or 'learned_range', between the two (Nichol and Dhariwal
      2021).
    rescale_timesteps: whether the network's time is t * 1000 / T, not t (as in
      Nichol and Dhariwal's code).
    spacing: `schedules.KarrasSpacing` of samplers that use it; its limits are
      clipped to the schedule's range.

  Raises:
    ValueError: an argument out of range.
  """

  def __init__(
      self,
      betas,
      *,
      prediction='eps',
      variance='fixedlarge',
      rescale_timesteps=False,
      spacing=_SPACING,
  ):
    names = [name for name in PREDICTIONS if name != 'edm']
    if prediction not in names:
      raise ValueError(
          f'prediction is {prediction!r}, expected one of: {", ".join(names)}'
          ' (edm needs the schedule edm)'
      )
    if variance not in VARIANCES:
      raise ValueError(
          f'variance is {variance!r}, expected one of: {", ".join(VARIANCES)}'
      )
    self.prediction = prediction
    self.variance = variance
    self.num_timesteps = len(betas)
    self.prior_sigma = 1.0
    self.betas = betas
    self.alphas_cumprod = np.cumprod(1.0 - betas)
    self._alphas = np.sqrt(self.alphas_cumprod)
    self._sigmas = np.sqrt(1.0 - self.alphas_cumprod)
    scale = 1000.0 / len(betas) if rescale_timesteps else 1.0
    self._times = scale * np.arange(len(betas))
    self._spacing = spacing
    alpha, sigma = self._alphas, self._sigmas
    c_in, c_skip, c_out = self.preconditioning(alpha, sigma)
    # A row for each field of Level.
    self._levels = np.float32(
        np.broadcast_arrays(
            alpha, sigma, self._times, c_in, c_skip, c_out,
            (1.0 - alpha * c_skip) / c_out, -sigma * c_skip / c_out,
        )
    )  # fmt: skip

  def level(self, t):
    return Level(*tf.unstack(tf.gather(self._levels, t, axis=1)))

  def steps(self, number, *, karras_spacing=False, strength=1.0):
    """The `Steps` of a sampler.

    Args:
      number: how many, 1 to `strength` T.
      karras_spacing: whether to space them by sigma / alpha as in `EDM`, with
        times interpolated between timesteps; else timesteps evenly spaced.
      strength: fraction of T to start at; 1 for pure noise.

    Raises:
      ValueError: `number` is out of range.
    """
    begin = max(1, round(strength * self.num_timesteps))
    t = schedules.timesteps_for(begin, number)
    if not karras_spacing:
      return Steps(self._alphas[t], self._sigmas[t], self._times[t], t)
    ratios = (self._sigmas / self._alphas)[:begin]
    high = min(ratios[-1], self._spacing.sigma_max)
    # If even the first level is below sigma_min, end where the schedule does.
    low = ratios[0]
    if low < self._spacing.sigma_min < high:
      low = self._spacing.sigma_min
    ratio = self._spacing.sigmas(number, high, low)
    alpha = 1.0 / np.sqrt(1.0 + ratio**2)
    time = np.interp(np.log(ratio), np.log(ratios), self._times[:begin])
    return Steps(alpha, ratio * alpha, time, t)

  def posterior(self, t, s):
    """Coefficients of q(x_s | x_t, x_0).

    Args:
      t: int NumPy array [N], the noisier timesteps.
      s: int NumPy array [N], the less noisy ones; -1 for clean images.

    Returns:
      As `schedules.posterior`.
    """
    return schedules.posterior(
        self._alphas[t],
        self._sigmas[t],
        np.where(s >= 0, self._alphas[s], 1.0),
        np.where(s >= 0, self._sigmas[s], 0.0),
    )


class EDM(Process):
  """The process of Karras et al. 2022: x = x_0 + sigma noise, any sigma.

  Attributes:
    sigma_data: standard deviation of the data.

  Args:
    spacing: `schedules.KarrasSpacing` of a sampler's steps.
    sigma_data: standard deviation of the data.
    variance: of the ancestral sampler, 'fixedlarge' or 'fixedsmall'.
    num_timesteps: the most steps that a sampler may take.

  Raises:
    ValueError: an argument out of range.
  """

  def __init__(
      self,
      *,
      spacing=_SPACING,
      sigma_data=0.5,
      variance='fixedsmall',
      num_timesteps=1000,
  ):
    if variance not in ('fixedlarge', 'fixedsmall'):
      raise ValueError(
          f'variance is {variance!r}, expected fixedlarge or fixedsmall with'
          ' the schedule edm'
      )
    if num_timesteps < 1:
      raise ValueError(f'num_timesteps is {num_timesteps}, expected at least 1')
    if not sigma_data > 0:
      raise ValueError(f'sigma_data is {sigma_data}, expected more than 0')
    self.prediction = 'edm'
    self.variance = variance
    self.num_timesteps = num_timesteps
    self.prior_sigma = spacing.sigma_max
    self.sigma_data = sigma_data
    self._spacing = spacing

  def level(self, t):
    alpha, sigma = tf.ones_like(t), t
    c_in, c_skip, c_out = self.preconditioning(alpha, sigma)
    return Level(
        alpha, sigma, tf.math.log(sigma) / 4.0, c_in, c_skip, c_out,
        # (1 - c_skip) / c_out and -sigma c_skip / c_out, without cancellation.
        sigma / self.sigma_data * c_in, -self.sigma_data * c_in,
    )  # fmt: skip

  def preconditioning(self, alpha, sigma):
    c_skip, c_out = edm(alpha, sigma, self.sigma_data)
    c_in = (sigma**2 + self.sigma_data**2) ** -0.5
    return Preconditioning(c_in, c_skip, c_out)

  def steps(self, number, *, karras_spacing=True, strength=1.0):
    """The `Steps` of a sampler, equation 5 of Karras et al. 2022.

    Args:
      number: how many, 1 to `num_timesteps`.
      karras_spacing: ignored: there are no timesteps to space evenly.
      strength: how far up these levels to start; 1 for sigma_max.

    Raises:
      ValueError: `number` is out of range.
    """
    del karras_spacing
    if not 1 <= number <= self.num_timesteps:
      raise ValueError(
          f'steps is {number}, expected 1 to {self.num_timesteps}'
      )
    low, high = self._spacing.sigma_min, self._spacing.sigma_max
    begin = self._spacing.sigma(1.0 - strength, high, low)
    sigma = self._spacing.sigmas(number, begin, low)
    t = np.arange(number)[::-1]
    return Steps(np.ones(number), sigma, np.log(sigma) / 4.0, t)


def per_image(coefficients):
  """Coefficients [B] or [], to multiply images with: float32 [B, 1, 1, 1]."""
  return tf.reshape(tf.cast(coefficients, tf.float32), [-1, 1, 1, 1])
