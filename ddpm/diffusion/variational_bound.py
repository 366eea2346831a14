"""The variational bound of a `process.Diffusion`, in bits per dimension.

Equation numbers are those of Ho et al. 2020. Shapes: images are float32
[B, H, W, C] in [-1, 1], of 256 levels; t is int32 [B].
"""

import numpy as np
import tensorflow as tf

from ddpm.diffusion.process import per_image


def bound_term(process, x0, xt, t, estimate, share=None):
  """One term of the variational bound, equation 5.

  L_{t-1}, the divergence of the model's step from the posterior; for t = 0
  L_0, the negative log-likelihood of the decoder of equation 13.

  Args:
    process: `process.Diffusion`.
    x0: images.
    xt: a draw from q(x_t | x_0).
    t: timesteps.
    estimate: the network's estimate of x_0. Ho's code clips it to [-1, 1] for
      evaluation, not for training.
    share: of a learned variance, from `Process.split`.

  Returns:
    float32 [B].
  """
  steps = np.arange(process.num_timesteps)
  coef = process.posterior(steps, steps - 1)
  # The posterior's variance at t = 0 is 0: the next one replaces it.
  log_posterior = np.log(np.maximum(coef['variance'], coef['variance'][1]))
  if process.variance == 'fixedlarge':
    log_model = np.append(log_posterior[0], np.log(process.betas[1:]))
    log_model = _gather(log_model, t)
  elif process.variance == 'fixedsmall':
    log_model = _gather(log_posterior, t)
  else:
    log_model = share * _gather(np.log(process.betas), t)
    log_model += (1.0 - share) * _gather(log_posterior, t)
  coef_x0, coef_xt = _gather(coef['coef_x0'], t), _gather(coef['coef_xt'], t)

  mean = coef_x0 * estimate + coef_xt * xt
  divergence = _normal_kl(
      coef_x0 * x0 + coef_xt * xt, _gather(log_posterior, t), mean, log_model
  )
  decoder = -_discretized_log_likelihood(x0, mean, 0.5 * log_model)
  term = tf.where(tf.reshape(t, [-1, 1, 1, 1]) == 0, decoder, divergence)
  return tf.reduce_mean(term, axis=[1, 2, 3]) / np.log(2.0)


def prior_term(process, x0):
  """L_T of equation 5, which does not depend on the network.

  Returns:
    float32 [B].
  """
  abar = process.alphas_cumprod[-1]
  divergence = _normal_kl(np.sqrt(abar) * x0, np.log(1.0 - abar), 0.0, 0.0)
  return tf.reduce_mean(divergence, axis=[1, 2, 3]) / np.log(2.0)


def _gather(table, t):
  """A table's entries for timesteps, float32 [B, 1, 1, 1]."""
  return per_image(tf.gather(tf.constant(table, tf.float32), t))


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

  A level's probability is the mass of a normal distribution within half a
  level of it; the lowest and highest level take the tails. As in Ho's code,
  the normal distribution function is Page's (1977) approximation by tanh.
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
