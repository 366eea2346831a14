"""The reverse process: from noise to images, as one loop of tensors.

A sampler is a table of coefficients, one row a step, made in float64; the loop
is the same for all. The step from t to s is

  x_s = coef_x0 * x_0 + coef_xt * x_t + coef_noise * z,   z ~ N(0, I)

where x_0 is the network's guess, clipped to [-1, 1] as Ho's code does, and z
depends on the image's own key and on t alone.
"""

import numpy as np
import tensorflow as tf

from ddpm import parallel
from ddpm import rng

SAMPLERS = ('ancestral', 'ddim')


class Sampler:
  """Draws images of a model; one call for the whole process of a batch.

  Attributes:
    name: of the sampler.
    steps: of the reverse process.

  Args:
    model: `unet.UNet`.
    layout: its `state.Layout`.
    diffusion: `diffusion.Diffusion`.
    sampler: one of SAMPLERS.
    steps: steps of the reverse process, 1 to T.
    variance: of the ancestral sampler.
    batch_size: images that are drawn at once, on each replica.
    jit_compile: whether to compile with XLA.
    stop: scalar, or variable of one, on the host: where it is not 0 the loop
      ends early, and its images are none.
    strategy: on whose devices; None for the default one.
  """

  def __init__(
      self,
      model,
      layout,
      diffusion,
      *,
      sampler,
      steps,
      variance,
      batch_size,
      jit_compile,
      stop=0.0,
      strategy=None,
  ):
    timesteps = timesteps_for(diffusion.num_timesteps, steps)
    table = coefficients(
        diffusion, timesteps, sampler=sampler, variance=variance
    )
    self.name = sampler
    self.steps = steps
    self._num_classes = model.num_classes

    def draw(params, seeds, labels):
      return sample(
          bind(model, layout, params, labels),
          diffusion,
          timesteps,
          table,
          keys=rng.key(seeds),
          image_shape=model.image_shape,
          jit_compile=jit_compile,
          stop=stop,
      )

    self._draw = parallel.Batched(
        draw, strategy=strategy, batch_size=batch_size
    )

  def labels(self, seeds):
    """The classes drawn for some seeds: seed mod num_classes; 0 without."""
    return (seeds % max(self._num_classes, 1)).astype(np.int32)

  def __call__(self, params, seeds):
    """Draws an image for each seed, in batches.

    Args:
      params: float32 [P], weights of the model.
      seeds: int64 NumPy array [N], not negative.

    Yields:
      uint8 NumPy arrays [n, H, W, C], in the order of the seeds. An image
      depends on its own seed alone.
    """
    yield from self._draw(params, seeds, self.labels(seeds))


def bind(model, layout, params, labels):
  """A network with its weights and its batch's labels.

  Args:
    model: `unet.UNet`.
    layout: its `state.Layout`.
    params: float32 [P].
    labels: int32 [B]; not looked at where the model has no classes.

  Returns:
    Function (x float32 [B, H, W, C], t int32 [B]) -> output, of x's shape.
  """
  weights = layout.split(params)

  def network(x, t):
    output, _ = model.stateless_call(
        weights, [], x, t, labels=labels if model.num_classes else None
    )
    return output

  return network


def timesteps_for(num_timesteps, steps):
  """Evenly spaced timesteps, from T - 1 down to 0 (Nichol and Dhariwal 2021).

  Args:
    num_timesteps: T.
    steps: how many, 1 to T. One step is T - 1 alone.

  Returns:
    int64 NumPy array [steps], falling.

  Raises:
    ValueError: steps out of range.
  """
  if not 1 <= steps <= num_timesteps:
    raise ValueError(f'steps is {steps}, expected 1 to {num_timesteps}')
  return np.round(np.linspace(num_timesteps - 1, 0, steps)).astype(np.int64)


def coefficients(diffusion, timesteps, *, sampler, variance='fixedlarge'):
  """The table of a sampler.

  Args:
    diffusion: `diffusion.Diffusion`.
    timesteps: int NumPy array [N], falling.
    sampler: 'ancestral', equations 6 and 7 of Ho et al. 2020, or 'ddim',
      equation 12 of Song et al. 2021 with eta = 0.
    variance: of the ancestral step: 'fixedlarge' (beta_t) or 'fixedsmall'
      (the posterior's).

  Returns:
    Dict of float64 arrays [N]: coef_x0, coef_xt, coef_noise. The last step
    adds no noise.
  """
  t = timesteps
  s = np.append(timesteps[1:], -1)
  if sampler == 'ancestral':
    posterior = diffusion.posterior(t, s)
    noise = {
        'fixedlarge': posterior['beta'],
        'fixedsmall': posterior['variance'],
    }[variance]
    return {
        'coef_x0': posterior['coef_x0'],
        'coef_xt': posterior['coef_xt'],
        'coef_noise': np.sqrt(noise) * (s >= 0),
    }
  if sampler == 'ddim':
    abar_t = diffusion.alphas_cumprod[t]
    abar_s = np.where(s >= 0, diffusion.alphas_cumprod[s], 1.0)
    # eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t), put into
    # x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps.
    ratio = np.sqrt((1.0 - abar_s) / (1.0 - abar_t))
    return {
        'coef_x0': np.sqrt(abar_s) - np.sqrt(abar_t) * ratio,
        'coef_xt': ratio,
        'coef_noise': np.zeros(len(t)),
    }
  raise ValueError(f'sampler is {sampler!r}, expected one of {SAMPLERS}')


def sample(
    network,
    diffusion,
    timesteps,
    table,
    *,
    keys,
    image_shape,
    jit_compile=False,
    stop=0.0,
):
  """Runs the whole reverse process.

  Args:
    network: function (x float32 [B, H, W, C], t int32 [B]) -> output, of x's
      shape.
    diffusion: `diffusion.Diffusion`.
    timesteps: int NumPy array [N], falling.
    table: dict of `coefficients`.
    keys: uint32 [B, 2], one key an image.
    image_shape: (H, W, C).
    jit_compile: whether to compile a step with XLA. The loop stands outside,
      where it can be stopped, and takes no longer to compile for more steps.
    stop: scalar or variable on the host: the loop ends where it is not 0.

  Returns:
    uint8 [B, H, W, C].
  """
  batch = keys.shape[0]
  ts = tf.constant(timesteps, tf.int32)
  coef = {k: tf.constant(v, tf.float32) for k, v in table.items()}
  any_noise = np.any(table['coef_noise'])
  # x_T has a key that no step's noise has: timesteps stop at T - 1.
  x = rng.normal(rng.fold_in(keys, diffusion.num_timesteps), image_shape)

  @tf.function(jit_compile=jit_compile, autograph=False)
  def step(x, t, coef_x0, coef_xt, coef_noise):
    ts = tf.fill([batch], t)
    x0 = diffusion.predict_x0(x, ts, network(x, ts))
    x0 = tf.clip_by_value(x0, -1.0, 1.0)
    x = coef_x0 * x0 + coef_xt * x
    if any_noise:
      x += coef_noise * rng.normal(rng.fold_in(keys, t), image_shape)
    return x

  def cond(i, x):
    return (i < len(timesteps)) & (tf.convert_to_tensor(stop) == 0)

  def body(i, x):
    row = {name: column[i] for name, column in coef.items()}
    return i + 1, step(x, ts[i], **row)

  _, x = tf.while_loop(cond, body, (tf.constant(0), x))
  # Ho's code: [-1, 1] to [0, 255], rounded.
  x = tf.clip_by_value((x + 1.0) * 127.5, 0.0, 255.0)
  return tf.cast(tf.round(x), tf.uint8)
