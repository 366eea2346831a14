"""The diffusion process: schedules, q(x_t | x_0), posterior and losses.

Equation numbers are those of Ho, Jain and Abbeel 2020, "Denoising diffusion
probabilistic models". Timesteps t are integers in [0, T): t here is the
paper's t - 1, so `alphas_cumprod[t]` is its \\bar\\alpha_{t+1}.

Coefficients are computed once in float64 NumPy and cast when used.

Shapes: images, noise and predictions are float32 [B, H, W, C]; t is int32 [B].
"""

import numpy as np
import tensorflow as tf

SCHEDULES = ('linear', 'cosine')
PREDICTIONS = ('eps', 'x0', 'v')
LOSSES = ('simple',)
VARIANCES = ('fixedlarge', 'fixedsmall')


def betas_for(schedule, num_timesteps, *, beta_start, beta_end):
  """The variances beta_t of the forward process.

  Args:
    schedule: 'linear' from beta_start to beta_end (Ho et al., section 4), or
      'cosine' (Nichol and Dhariwal 2021, equation 17, with s = 0.008 and
      beta clipped to 0.999).
    num_timesteps: T.
    beta_start: first beta of the linear schedule.
    beta_end: last beta of the linear schedule.

  Returns:
    float64 NumPy array [T].
  """
  if schedule == 'linear':
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)
  if schedule == 'cosine':
    t = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_cumprod = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)
  raise ValueError(f'schedule is {schedule!r}, expected one of {SCHEDULES}')


class Diffusion:
  """A forward process, and what the network predicts of it.

  Args:
    betas: float64 [T], from `betas_for`.
    prediction: what the network's output means: 'eps' (the noise), 'x0', or
      'v' = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022).
  """

  def __init__(self, betas, *, prediction='eps'):
    if prediction not in PREDICTIONS:
      raise ValueError(
          f'prediction is {prediction!r}, expected one of {PREDICTIONS}'
      )
    self.prediction = prediction
    self.num_timesteps = len(betas)
    self.betas = betas
    self.alphas_cumprod = np.cumprod(1.0 - betas)

  def q_sample(self, x0, t, noise):
    """Draws from q(x_t | x_0), equation 4: x_t for the given noise."""
    alpha, sigma = self._alpha_sigma(t)
    return alpha * x0 + sigma * noise

  def target(self, x0, t, noise):
    """What the network is to predict, given x_0 and the noise."""
    alpha, sigma = self._alpha_sigma(t)
    if self.prediction == 'eps':
      return noise
    if self.prediction == 'x0':
      return x0
    return alpha * noise - sigma * x0

  def simple_loss(self, x0, t, noise, output):
    """L_simple, equation 14: the squared error, averaged over an image.

    Returns:
      float32 [B].
    """
    error = tf.square(self.target(x0, t, noise) - output)
    return tf.reduce_mean(error, axis=[1, 2, 3])

  def predict_x0(self, xt, t, output):
    """x_0 from x_t and the network's output; equation 15 for 'eps'."""
    alpha, sigma = self._alpha_sigma(t)
    if self.prediction == 'eps':
      return (xt - sigma * output) / alpha
    if self.prediction == 'x0':
      return output
    return alpha * xt - sigma * output

  def posterior(self, t, s):
    """Coefficients of q(x_s | x_t, x_0), equations 6 and 7, for any s < t.

    With s = t - 1 these are the paper's. Over a longer stride alpha_t is the
    ratio of the cumulative products (Nichol and Dhariwal 2021, section 3.4).

    Args:
      t: int NumPy array [N] of timesteps.
      s: int NumPy array [N] of earlier ones, -1 for clean images.

    Returns:
      Dict of float64 arrays [N]: the mean is coef_x0 * x_0 + coef_xt * x_t,
      'beta' is the forward variance of the stride, 'variance' the posterior's.
    """
    abar_t = self.alphas_cumprod[t]
    abar_s = np.where(s >= 0, self.alphas_cumprod[s], 1.0)
    alpha = abar_t / abar_s
    beta = 1.0 - alpha
    return {
        'coef_x0': np.sqrt(abar_s) * beta / (1.0 - abar_t),
        'coef_xt': np.sqrt(alpha) * (1.0 - abar_s) / (1.0 - abar_t),
        'beta': beta,
        'variance': beta * (1.0 - abar_s) / (1.0 - abar_t),
    }

  def vlb_term(self, x0, xt, t, output, *, variance):
    """One term of the variational bound, equation 5, in bits a dimension.

    L_{t-1}, the divergence of the model's step from the posterior; for t = 0
    L_0, the negative log-likelihood of the decoder of equation 13. As in Ho's
    code the network's guess of x_0 is clipped to [-1, 1].

    Args:
      x0: images in [-1, 1], of 256 levels.
      xt: a draw from q(x_t | x_0).
      t: timesteps.
      output: of the network, for xt and t.
      variance: of the model's steps, one of VARIANCES.

    Returns:
      float32 [B].
    """
    steps = np.arange(self.num_timesteps)
    posterior = self.posterior(steps, steps - 1)
    # The posterior's variance at t = 0 is 0: the next one stands in for it.
    log_posterior = np.log(np.maximum(
        posterior['variance'], posterior['variance'][1]
    ))  # fmt: skip
    log_model = {
        'fixedlarge': np.log(
            np.append(posterior['variance'][1], self.betas[1:])
        ),
        'fixedsmall': log_posterior,
    }[variance]
    coef_x0 = _gather(posterior['coef_x0'], t)
    coef_xt = _gather(posterior['coef_xt'], t)
    log_posterior, log_model = _gather(log_posterior, t), _gather(log_model, t)

    guess = tf.clip_by_value(self.predict_x0(xt, t, output), -1.0, 1.0)
    mean = coef_x0 * guess + coef_xt * xt
    divergence = _normal_kl(
        coef_x0 * x0 + coef_xt * xt, log_posterior, mean, log_model
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

  def _alpha_sigma(self, t):
    """sqrt(abar_t) and sqrt(1 - abar_t), each float32 [B, 1, 1, 1]."""
    alpha = _gather(np.sqrt(self.alphas_cumprod), t)
    sigma = _gather(np.sqrt(1.0 - self.alphas_cumprod), t)
    return alpha, sigma


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
