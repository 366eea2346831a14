"""The variational bound in NumPy, from the equations."""

import math

import numpy as np


def terms(process, x0, xt, estimate, variance, share=None):
  """All terms of equation 5 of Ho et al. 2020, L_T first, in bits.

  From equations 2, 6, 7 and 13; a learned variance is equation 15 of Nichol and
  Dhariwal 2021.

  Args:
    process: `process.Diffusion`, of which only the betas are used.
    x0: clean image [...].
    xt: noised images [T, ...].
    estimate: of x_0 [T, ...].
    variance: name of the model's variance.
    share: the network's output for it [T, ...], from -1 to 1.
  """
  betas = process.betas
  abar = np.cumprod(1 - betas)
  before = np.append(1.0, abar[:-1])
  tilde = betas * (1 - before) / (1 - abar)
  bits = [0.5 * (abar[-1] * x0**2 - abar[-1] - np.log(1 - abar[-1]))]
  for t in range(len(betas)):
    # At t = 0 the posterior has no variance, and the next one's replaces it.
    small = tilde[max(t, 1)]
    sigma2 = betas[t] if variance == 'fixedlarge' and t else small
    if variance == 'learned_range':
      v = (share[t] + 1) / 2
      sigma2 = np.exp(v * np.log(betas[t]) + (1 - v) * np.log(small))
    a = np.sqrt(before[t]) * betas[t] / (1 - abar[t])
    b = np.sqrt(1 - betas[t]) * (1 - before[t]) / (1 - abar[t])
    mean = a * estimate[t] + b * xt[t]
    if t:
      distance = (a * x0 + b * xt[t] - mean) ** 2
      ratio = tilde[t] / sigma2
      bits.append(0.5 * (ratio + distance / sigma2 - 1 - np.log(ratio)))
    else:
      # The exact normal distribution, which Ho's code approximates.
      cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
      high = cdf((x0 + 1 / 255 - mean) / np.sqrt(sigma2))
      low = cdf((x0 - 1 / 255 - mean) / np.sqrt(sigma2))
      high, low = np.where(x0 > 0.999, 1, high), np.where(x0 < -0.999, 0, low)
      bits.append(-np.log(np.maximum(high - low, 1e-12)))
  return [term.mean() / np.log(2) for term in bits]
