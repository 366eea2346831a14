"""Bits per dimension from all T terms of the variational bound."""

import os

import numpy as np
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import variational_bound
from ddpm.nn.guidance import guided_network
from ddpm.run import build
from ddpm.runtime import device_map
from ddpm.runtime import precision
from ddpm.runtime import shards
from ddpm.runtime.errors import UserError


class BitsPerDim:
  """Bits per dimension of images under a model, by its variational bound.

  Args:
    run: `reader.Run`.
    source: of the images, see `sources`.
    num_images: number of images to use, from the start; at most all.
    strategy: `tf.distribute.Strategy`.
    batch_size: images per replica.
  """

  def __init__(self, run, source, *, num_images, strategy, batch_size):
    jit_compile = build.jit_compile(run.config, strategy)
    self._source = source
    self._count = min(num_images, len(source))

    def function(params, images, numbers, labels):
      return bits_per_dim(
          guided_network(run.model, run.layout, params, labels),
          run.diffusion,
          images,
          rng.key(numbers),
          jit_compile=jit_compile,
      )

    self._run = device_map.DeviceMap(
        function, strategy=strategy, batch_size=batch_size
    )

  def __call__(self, params, directory):
    """Computes bits per dimension; finished shards are kept.

    Args:
      params: float32 [P], the weights.
      directory: where to keep shards; one per set of weights.

    Returns:
      Dict of the mean and its standard error, by their names in a result.

    Raises:
      UserError: they are not finite.
    """
    source = self._source

    def make(start, stop):
      numbers = np.arange(start, stop, dtype=np.int64)
      labels = np.zeros(len(numbers), np.int32)
      if source.labels is not None:
        labels = source.labels[start:stop]
      images = source.read(start, stop)
      with precision.exact_products():
        values = list(self._run(params, images, numbers, labels))
      bpd = np.concatenate(values)
      if not np.isfinite(bpd).all():
        i = start + int(np.isfinite(bpd).argmin())
        raise UserError(
            f'the bits per dimension of image {i} are not finite, so the'
            ' network overflows: use another checkpoint'
        )
      return {'bpd': bpd}

    kept = shards.Shards(
        os.path.join(directory, f'bpd_{source.identity[:8]}'),
        make,
        total=self._count,
        name='bits per dimension',
    )
    bpd = np.concatenate(list(kept.column('bpd', 0, self._count)))
    bpd = bpd.astype(np.float64)
    suffix = '' if self._count == len(source) else f'@{self._count}'
    return {
        f'bpd{suffix}': float(bpd.mean()),
        f'bpd_stderr{suffix}': float(bpd.std(ddof=1) / np.sqrt(len(bpd))),
    }


def bits_per_dim(network, diffusion, images, keys, *, jit_compile):
  """Bound on the negative log-likelihood, equation 5 of Ho et al. 2020.

  x_t is drawn once per t, as in the code of Ho et al. and of Nichol and
  Dhariwal 2021.

  Args:
    network: function (x float32 [B, H, W, C], time float32 [B]) -> output.
    diffusion: `process.Diffusion`.
    images: uint8 [B, H, W, C].
    keys: uint32 [B, 2], one random key per image.
    jit_compile: whether to compile each term with XLA.

  Returns:
    float32 [B].
  """
  x0 = pixels.from_uint8(images)
  batch, *shape = x0.shape

  @tf.function(jit_compile=jit_compile, autograph=False)
  def term(t):
    ts = tf.fill([batch], t)
    xt = diffusion.q_sample(x0, ts, rng.normal(rng.fold_in(keys, t), shape))
    estimate, share = diffusion.denoise(network, xt, diffusion.level(ts))
    # Ho's code also clips for evaluation.
    estimate = pixels.clip(estimate)
    return variational_bound.bound_term(
        diffusion, x0, xt, ts, estimate, share
    )

  # The terms are independent, so TensorFlow would run ten in parallel and use
  # ten times the memory. On a CPU this also crashes oneDNN's convolutions,
  # which are not safe to run in parallel.
  _, total = tf.while_loop(
      lambda t, total: t < diffusion.num_timesteps,
      lambda t, total: (t + 1, total + term(t)),
      (tf.constant(0), variational_bound.prior_term(diffusion, x0)),
      parallel_iterations=1,
  )
  return total
