"""The diffusion process: noise levels, q(x_t | x_0), posterior and losses.

Two processes noise an image, x_t = alpha_t x_0 + sigma_t noise:

  Diffusion  T levels, alpha^2 + sigma^2 = 1 (Ho, Jain and Abbeel 2020)
  EDM        any level, alpha = 1 (Karras et al. 2022)

What follows from alpha and sigma alone is shared. Equation numbers are those
of Ho et al. 2020, "Denoising diffusion probabilistic models", unless another
paper is named. Timesteps t are integers in [0, T): t here is the paper's t - 1,
so `alphas_cumprod[t]` is its \\bar\\alpha_{t+1}.

Coefficients are computed once in float64 NumPy and cast when used.

Shapes: images, noise and predictions are float32 [B, H, W, C]; t is [B], int32
timesteps for `Diffusion` and float32 sigmas for `EDM`.
"""

import typing

import numpy as np
import tensorflow as tf

from ddpm.diffusion import schedules

PREDICTIONS = ('eps', 'x0', 'v', 'edm')
LOSSES = ('simple', 'min_snr', 'vlb', 'hybrid')
VARIANCES = ('fixedlarge', 'fixedsmall', 'learned_range')


class Level(typing.NamedTuple):
  """How noisy images are.

  Attributes:
    alpha: [B, 1, 1, 1] or [], the share of the image.
    sigma: the same, standard deviation of the noise.
    time: [B], what the network is told of it.
  """

  alpha: tf.Tensor
  sigma: tf.Tensor
  time: tf.Tensor


class Steps(typing.NamedTuple):
  """The levels that a sampler goes through, noisiest first.

  Attributes:
    alpha, sigma, time: float64 NumPy arrays [N], as in `Level`.
    t: int64 NumPy array [N], numbers of the levels, falling.
  """

  alpha: np.ndarray
  sigma: np.ndarray
  time: np.ndarray
  t: np.ndarray


class _Process:
  """What is known of a process from its levels' alpha and sigma.

  Attributes:
    prediction: what the network's output means, one of PREDICTIONS.
    variance: of the steps back, one of VARIANCES.
    num_timesteps: T, the most steps that a sampler may take.
  """

  # Standard deviation of the data that 'edm' scales by.
  sigma_data = 0.5

  def level(self, t):
    """The `Level` of each image, from its t."""
    raise NotImplementedError

  def q_sample(self, x0, t, noise):
    """Draws from q(x_t | x_0), equation 4: x_t for the given noise."""
    level = self.level(t)
    return level.alpha * x0 + level.sigma * noise

  def network_output(self, network, xt, level):
    """Asks a network about x_t; 'edm' scales it by c_in (Karras et al. 2022).

    Args:
      network: function (x, time) -> [B, H, W, C] or, with a learned variance,
        [B, H, W, 2 C].
      xt: noised images.
      level: their `Level`.

    Returns:
      The network's output.
    """
    if self.prediction == 'edm':
      xt = xt / tf.sqrt(level.sigma**2 + self.sigma_data**2)
    return network(xt, level.time)

  def target(self, x0, level, noise):
    """What the network is to predict, given x_0 and the noise."""
    alpha, sigma = level.alpha, level.sigma
    if self.prediction == 'eps':
      return noise
    if self.prediction == 'x0':
      return x0
    if self.prediction == 'v':
      return alpha * noise - sigma * x0
    # (x_0 - c_skip x_t) / c_out, with c_skip and c_out put in.
    data, total = self.sigma_data, tf.sqrt(sigma**2 + self.sigma_data**2)
    return sigma / (data * total) * x0 - data / total * noise

  def predict_x0(self, xt, level, output):
    """x_0 from x_t and the network's output; equation 15 for 'eps'."""
    prediction, _ = self._split(output)
    alpha, sigma = level.alpha, level.sigma
    if self.prediction == 'eps':
      return (xt - sigma * prediction) / alpha
    if self.prediction == 'x0':
      return prediction
    if self.prediction == 'v':
      return alpha * xt - sigma * prediction
    data, total = self.sigma_data, sigma**2 + self.sigma_data**2
    return data**2 / total * xt + sigma * data / tf.sqrt(total) * prediction

  def variance_share(self, output):
    """Where a learned log-variance lies, from the posterior's, 0, to beta's, 1
    (Nichol and Dhariwal 2021, equation 15): [B, H, W, C]."""
    return (self._split(output)[1] + 1.0) / 2.0

  def _split(self, output):
    if self.variance == 'learned_range':
      return tf.split(output, 2, axis=-1)
    return output, None

  def losses(self, network, x0, t, noise, *, loss, min_snr_gamma=5.0):
    """The training loss of each image.

    - simple: L_simple, equation 14, the squared error of what the network
      predicts, averaged over an image. For 'edm' this is the loss of Karras et
      al. 2022 with its weight, but for a constant (a mean, theirs is a sum).
    - min_snr: the same, of x_0, weighted by min(SNR, gamma) (Hang et al. 2023).
    - vlb: T times the bound's term at t, in bits a dimension.
    - hybrid: simple + vlb / 1000, where the bound moves the variance alone
      (Nichol and Dhariwal 2021, equation 16; 1000 is their code's).

    Args:
      network: as for `network_output`.
      x0: images.
      t: their levels.
      noise: as x0.
      loss: one of LOSSES.
      min_snr_gamma: gamma of min_snr.

    Returns:
      Dict of float32 [B], 'loss' first, named by `loss_terms`.
    """
    level = self.level(t)
    xt = level.alpha * x0 + level.sigma * noise
    output = self.network_output(network, xt, level)
    if loss == 'vlb':
      term = self.vlb_term(x0, xt, t, output, clip=False)
      return {'loss': self.num_timesteps * term}
    prediction, share = self._split(output)
    error = tf.square(self.target(x0, level, noise) - prediction)
    mse = tf.reduce_mean(error, axis=[1, 2, 3])
    if loss == 'simple':
      return {'loss': mse}
    if loss == 'min_snr':
      return {'loss': mse * self._min_snr_weight(level, min_snr_gamma)}
    output = tf.concat([tf.stop_gradient(prediction), share], axis=-1)
    vb = self.vlb_term(x0, xt, t, output, clip=False)
    vb *= self.num_timesteps / 1000.0
    return {'loss': mse + vb, 'mse': mse, 'vb': vb}

  def _min_snr_weight(self, level, gamma):
    """min(SNR, gamma) over what the network's own error already weighs."""
    snr = tf.reshape(tf.square(level.alpha / level.sigma), [-1])
    weight = tf.minimum(snr, gamma)
    if self.prediction == 'eps':
      return weight / snr
    if self.prediction == 'v':
      return weight / (snr + 1.0)
    if self.prediction == 'edm':
      return weight / (snr + 1.0 / self.sigma_data**2)
    return weight


class Diffusion(_Process):
  """A forward process of T steps, and what the network predicts of it.

  Args:
    betas: float64 [T], from `betas_for`.
    prediction: what the network's output means: 'eps' (the noise), 'x0', or
      'v' = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022).
    variance: of the steps back: 'fixedlarge' (beta_t), 'fixedsmall' (the
      posterior's), or 'learned_range', between the two (Nichol and Dhariwal
      2021).
    rescale_timesteps: whether the network is told t * 1000 / T, not t (as in
      Nichol and Dhariwal's code).
    sigma_min: sigma / alpha of the last step of a sampler that is spaced by
      noise, if the schedule goes as low.
    sigma_max: of its first, if it goes as high.
    rho: how much its steps crowd at low noise.
  """

  def __init__(
      self,
      betas,
      *,
      prediction='eps',
      variance='fixedlarge',
      rescale_timesteps=False,
      sigma_min=0.002,
      sigma_max=80.0,
      rho=7.0,
  ):
    if prediction not in PREDICTIONS or prediction == 'edm':
      raise ValueError(
          f'prediction is {prediction!r}, expected eps, x0 or v (edm goes with'
          ' the schedule edm)'
      )
    if variance not in VARIANCES:
      raise ValueError(f'variance is {variance!r}, expected one of {VARIANCES}')
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
    self._sigma_min = sigma_min
    self._sigma_max = sigma_max
    self._rho = rho

  def level(self, t):
    return Level(
        _gather(self._alphas, t),
        _gather(self._sigmas, t),
        tf.gather(tf.constant(self._times, tf.float32), t),
    )

  def steps(self, number, *, karras_spacing=False, strength=1.0):
    """The `Steps` of a sampler.

    Args:
      number: how many, 1 to `strength` T.
      karras_spacing: whether they are spaced as in `EDM`, by sigma / alpha,
        with a time between two timesteps for a level between them; otherwise
        they are evenly spaced timesteps.
      strength: fraction of T that they begin at; 1 for noise alone.
    """
    begin = max(1, round(strength * self.num_timesteps))
    t = schedules.timesteps_for(begin, number)
    if not karras_spacing:
      return Steps(self._alphas[t], self._sigmas[t], self._times[t], t)
    ratios = (self._sigmas / self._alphas)[:begin]
    high = min(ratios[-1], self._sigma_max)
    # A process that begins below sigma_min goes to the schedule's own end.
    low = ratios[0]
    if low < self._sigma_min < high:
      low = self._sigma_min
    ratio = schedules.karras_sigmas(number, high, low, self._rho)
    alpha = 1.0 / np.sqrt(1.0 + ratio**2)
    time = np.interp(np.log(ratio), np.log(ratios), self._times[:begin])
    return Steps(alpha, ratio * alpha, time, t)

  def posterior(self, t, s):
    """`posterior` of timesteps: int NumPy arrays [N], s = -1 for clean."""
    return schedules.posterior(
        self._alphas[t],
        self._sigmas[t],
        np.where(s >= 0, self._alphas[s], 1.0),
        np.where(s >= 0, self._sigmas[s], 0.0),
    )

  def vlb_term(self, x0, xt, t, output, *, clip=True):
    """One term of the variational bound, equation 5, in bits a dimension.

    L_{t-1}, the divergence of the model's step from the posterior; for t = 0
    L_0, the negative log-likelihood of the decoder of equation 13.

    Args:
      x0: images in [-1, 1], of 256 levels.
      xt: a draw from q(x_t | x_0).
      t: timesteps.
      output: of the network, for xt and t.
      clip: whether to clip the guess of x_0 to [-1, 1], as Ho's code does when
        it measures.

    Returns:
      float32 [B].
    """
    steps = np.arange(self.num_timesteps)
    coef = self.posterior(steps, steps - 1)
    # The posterior's variance at t = 0 is 0: the next one stands in for it.
    log_posterior = np.log(np.maximum(coef['variance'], coef['variance'][1]))
    if self.variance == 'fixedlarge':
      log_model = np.append(log_posterior[0], np.log(self.betas[1:]))
      log_model = _gather(log_model, t)
    elif self.variance == 'fixedsmall':
      log_model = _gather(log_posterior, t)
    else:
      share = self.variance_share(output)
      log_model = share * _gather(np.log(self.betas), t)
      log_model += (1.0 - share) * _gather(log_posterior, t)
    coef_x0, coef_xt = _gather(coef['coef_x0'], t), _gather(coef['coef_xt'], t)

    guess = self.predict_x0(xt, self.level(t), output)
    if clip:
      guess = tf.clip_by_value(guess, -1.0, 1.0)
    mean = coef_x0 * guess + coef_xt * xt
    divergence = _normal_kl(
        coef_x0 * x0 + coef_xt * xt, _gather(log_posterior, t), mean, log_model
    )
    decoder = -_discretized_log_likelihood(x0, mean, 0.5 * log_model)
    term = tf.where(tf.reshape(t, [-1, 1, 1, 1]) == 0, decoder, divergence)
    return tf.reduce_mean(term, axis=[1, 2, 3]) / np.log(2.0)

  def vlb_prior(self, x0):
    """L_T of equation 5, which no training changes, in bits a dimension.

    Returns:
      float32 [B].
    """
    abar = self.alphas_cumprod[-1]
    divergence = _normal_kl(np.sqrt(abar) * x0, np.log(1.0 - abar), 0.0, 0.0)
    return tf.reduce_mean(divergence, axis=[1, 2, 3]) / np.log(2.0)


class EDM(_Process):
  """The process of Karras et al. 2022: x = x_0 + sigma noise, any sigma.

  The network's part in x_0 is weighed by sigma: their preconditioning.

  Args:
    sigma_min: of a sampler's last step.
    sigma_max: of its first.
    rho: how much a sampler's steps crowd at low sigma (their equation 5).
    sigma_data: standard deviation of the data.
    variance: of the ancestral sampler, 'fixedlarge' or 'fixedsmall'.
    num_timesteps: the most steps that a sampler may take.
  """

  def __init__(
      self,
      *,
      sigma_min=0.002,
      sigma_max=80.0,
      rho=7.0,
      sigma_data=0.5,
      variance='fixedsmall',
      num_timesteps=1000,
  ):
    self.prediction = 'edm'
    self.variance = variance
    self.num_timesteps = num_timesteps
    self.prior_sigma = sigma_max
    self.sigma_data = sigma_data
    self._sigma_min = sigma_min
    self._rho = rho

  def level(self, t):
    sigma = tf.reshape(t, [-1, 1, 1, 1])
    return Level(tf.ones_like(sigma), sigma, tf.math.log(t) / 4.0)

  def steps(self, number, *, karras_spacing=True, strength=1.0):
    """The `Steps` of a sampler, equation 5 of Karras et al. 2022.

    Args:
      number: how many, 1 to `num_timesteps`.
      karras_spacing: they always are: there are no timesteps to space evenly.
      strength: how far up these levels they begin; 1 for sigma_max.
    """
    del karras_spacing
    if not 1 <= number <= self.num_timesteps:
      raise ValueError(
          f'steps is {number}, expected 1 to {self.num_timesteps}'
      )
    low, high = self._sigma_min, self.prior_sigma
    begin = schedules.karras_sigma(1.0 - strength, high, low, self._rho)
    sigma = schedules.karras_sigmas(number, begin, low, self._rho)
    t = np.arange(number)[::-1]
    return Steps(np.ones(number), sigma, np.log(sigma) / 4.0, t)


def loss_terms(loss):
  """Names of what `losses` gives: 'loss', and the parts of a hybrid one."""
  return ('loss', 'mse', 'vb') if loss == 'hybrid' else ('loss',)


def _gather(table, t):
  """A table's entries for timesteps, float32 [B, 1, 1, 1]."""
  table = tf.constant(table, tf.float32)
  return tf.reshape(tf.gather(table, t), [-1, 1, 1, 1])


def _normal_kl(mean1, log_variance1, mean2, log_variance2):
  """Divergence of N(mean2, variance2) from N(mean1, variance1), in nats."""
  return 0.5 * (
      log_variance2
      - log_variance1
      - 1.0
      + tf.exp(tf.cast(log_variance1 - log_variance2, tf.float32))
      + tf.square(mean1 - mean2)
      * tf.exp(-tf.cast(log_variance2, tf.float32))
  )


def _discretized_log_likelihood(x, mean, log_scale):
  """Log-probability of images of 256 levels, equation 13, in nats.

  A level's is what a normal distribution holds within half a level of it, and
  beyond it at either end. As in Ho's code the normal distribution function is
  Page's (1977) approximation by tanh.
  """
  centred = x - mean
  inverse = tf.exp(-log_scale)
  above = _normal_cdf(inverse * (centred + 1.0 / 255.0))
  below = _normal_cdf(inverse * (centred - 1.0 / 255.0))
  probability = tf.where(
      x < -0.999, above, tf.where(x > 0.999, 1.0 - below, above - below)
  )
  return tf.math.log(tf.maximum(probability, 1e-12))


def _normal_cdf(x):
  return 0.5 * (
      1.0 + tf.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * tf.pow(x, 3)))
  )
