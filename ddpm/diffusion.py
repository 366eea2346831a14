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

  def _alpha_sigma(self, t):
    """sqrt(abar_t) and sqrt(1 - abar_t), each float32 [B, 1, 1, 1]."""

    def gather(table):
      table = tf.constant(table, tf.float32)
      return tf.reshape(tf.gather(table, t), [-1, 1, 1, 1])

    alpha = gather(np.sqrt(self.alphas_cumprod))
    sigma = gather(np.sqrt(1.0 - self.alphas_cumprod))
    return alpha, sigma
