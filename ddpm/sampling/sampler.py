"""Draws images from a model: the loop that a solver's rows go through.

`diffusion/solvers.py` says what a row means. The noise z of a row depends on
the image's own key and on the row's t alone.
"""

import hashlib
import math

import numpy as np
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import solvers
from ddpm.nn.guidance import guided_network
from ddpm.run import build
from ddpm.runtime import device_map
from ddpm.runtime.errors import UserError

# Of an animation; a process of more steps skips some.
_MAX_FRAMES = 61


class Sampler:
  """Draws images of a model; one call for the whole process of a batch.

  Attributes:
    name: of the sampler.
    steps: of the reverse process.
    eta: noise of ddim and dpmpp_2m.
    guidance: scale of classifier-free guidance; 1 for none.
    digest: of all these, and of the levels that the steps go through.
    is_noisy: whether it adds noise on the way.
    draw: function (params [P], seeds [B], labels int32 [B]) -> uint8
      [B, H, W, C] (of an animation [B, frames, H, W, C]), of tensors, for any
      B. With seeds [B, 2] and a fourth argument, fractions float32 [B], the
      initial noise lies between that of two seeds.

  Args:
    model: `unet.UNet`.
    layout: its `flat.Layout`.
    diffusion: of `diffusion`, the process.
    sampler: a name in `solvers.SOLVERS`.
    steps: steps of the reverse process, 1 to T.
    guidance: scale of classifier-free guidance; 1 for none.
    eta: of ddim.
    batch_size: images that are drawn at once, on each replica.
    jit_compile: whether to compile with XLA.
    stop: scalar, or variable of one, on the host: where it is not 0 the loop
      ends early, and its images are none.
    strategy: on whose devices; None for the default one.
    init_image: uint8 [H, W, C], to begin with or to paint in; None for none.
    mask: bool [H, W, 1], where to paint; None for everywhere.
    strength: fraction of the process that is gone through, from the noised
      image on, with that share of the steps; 1 for all of it, from noise.
    animation: whether to draw the noisy images on the way, too.
  """

  def __init__(
      self,
      model,
      layout,
      diffusion,
      *,
      sampler,
      steps,
      batch_size,
      jit_compile,
      guidance=1.0,
      eta=0.0,
      stop=0.0,
      strategy=None,
      init_image=None,
      mask=None,
      strength=1.0,
      animation=False,
  ):
    number = max(1, round(strength * steps))
    image = None if init_image is None else pixels.from_uint8(init_image)
    levels = solvers.steps_for(diffusion, sampler, number, strength=strength)
    rows = solvers.table(diffusion, levels, sampler=sampler, eta=eta)
    begin = None if strength == 1.0 else image
    self.name = sampler
    self.steps = steps
    self.eta = eta
    self.guidance = guidance
    columns = b''.join(rows[name].tobytes() for name in sorted(rows))
    columns += np.float64(guidance).tobytes()
    self.digest = hashlib.sha256(columns).hexdigest()[:8]
    self.is_noisy = bool(np.any(rows['noise']))
    self._num_classes = model.num_classes

    def draw(params, seeds, labels, fractions=None):
      shape = model.image_shape
      if fractions is None:
        keys = rng.key(seeds)
        noise = initial_noise(diffusion, keys, shape)
      else:
        keys, other = rng.key(seeds[:, 0]), rng.key(seeds[:, 1])
        noise = slerp(
            initial_noise(diffusion, keys, shape),
            initial_noise(diffusion, other, shape),
            fractions,
        )
      x, frames = sample(
          guided_network(model, layout, params, labels, guidance=guidance),
          diffusion,
          rows,
          start=_start(diffusion, rows, noise, begin),
          keys=keys,
          clip=solvers.SOLVERS[sampler].clips,
          known=None if mask is None else (image, mask),
          animation=animation,
          jit_compile=jit_compile,
          stop=stop,
      )
      return pixels.to_uint8(x) if frames is None else frames

    self.draw = draw
    self._batched = device_map.DeviceMap(
        draw, strategy=strategy, batch_size=batch_size
    )

  def labels(self, seeds):
    """The classes drawn for some seeds: seed mod num_classes; 0 without."""
    return (seeds % max(self._num_classes, 1)).astype(np.int32)

  def __call__(self, params, seeds, labels=None, fractions=None):
    """Draws an image for each seed, in batches.

    Args:
      params: float32 [P], weights of the model.
      seeds: int64 NumPy array [N], not negative; with fractions [N, 2].
      labels: int32 NumPy array [N], classes; None for `labels` of the (first)
        seeds.
      fractions: float32 NumPy array [N], or None: see `draw`.

    Yields:
      uint8 NumPy arrays [n, H, W, C] (of an animation [n, frames, H, W, C]), in
      the order of the seeds. An image depends on its own seed and label alone.
    """
    if labels is None:
      labels = self.labels(seeds.reshape(len(seeds), -1)[:, 0])
    between = [] if fractions is None else [fractions]
    yield from self._batched(params, seeds, labels, *between)


def for_run(
    run,
    sampler,
    steps,
    *,
    batch_size,
    guidance=1.0,
    eta=None,
    jit_compile=True,
    strategy=None,
    **kwargs,
):
  """Makes the sampler of a run's model.

  Args:
    run: `reader.Run`.
    sampler: a name in `solvers.SOLVERS`, or None for the config's.
    steps: of the reverse process, or None for the config's; of another
      sampler for what it is good with.
    batch_size: images that are drawn at once, on each replica.
    guidance: scale of classifier-free guidance; 1 for none.
    eta: of ddim and dpmpp_2m, or None for the config's; of another sampler
      for 0.
    jit_compile: whether to compile with XLA, where the config does.
    strategy: on whose devices; None for the default one.
    **kwargs: of `Sampler`: an image to begin with, an animation.

  Returns:
    `Sampler`.

  Raises:
    UserError: an unknown sampler, steps out of range, or what the model or
      the sampler has no use for.
  """
  config = run.config
  sampler = sampler or config.sample.sampler
  try:
    solvers.check(sampler, eta or 0.0, prefix='--')
  except ValueError as e:
    raise UserError(str(e)) from e
  defaults = config.sample.steps, config.sample.eta
  if sampler != config.sample.sampler:
    num_timesteps = config.diffusion.num_timesteps
    defaults = solvers.default_steps(sampler, num_timesteps), 0.0
  steps = defaults[0] if steps is None else steps
  eta = defaults[1] if eta is None else eta
  if not 1 <= steps <= config.diffusion.num_timesteps:
    raise UserError(
        f'--steps is {steps}, expected 1 to'
        f' {config.diffusion.num_timesteps}, the timesteps of the model'
    )
  if guidance != 1.0 and not config.train.label_dropout:
    raise UserError(
        f'--guidance is {guidance}, which needs a model that was trained with'
        ' and without its classes: model.num_classes, and'
        ' train.label_dropout=0.1, say'
    )
  if not math.isfinite(guidance):
    raise UserError(f'--guidance is {guidance}, expected a number')
  return Sampler(
      run.model,
      run.layout,
      run.diffusion,
      sampler=sampler,
      steps=steps,
      guidance=guidance,
      eta=eta,
      batch_size=batch_size,
      jit_compile=jit_compile and build.jit_compile(config),
      strategy=strategy,
      **kwargs,
  )


def initial_noise(diffusion, keys, image_shape):
  """Standard normal noise [B, H, W, C], that a process begins with.

  Its key is one that no step's noise has: timesteps stop at T - 1.
  """
  return rng.normal(rng.fold_in(keys, diffusion.num_timesteps), image_shape)


def slerp(a, b, fraction):
  """Between a, at 0, and b, at 1, on a great circle (Shoemake 1985).

  What lies on the straight line has too little noise in it.

  Args:
    a, b: float32 [B, H, W, C].
    fraction: float32 [B].
  """
  axes = [1, 2, 3]

  def dot(x, y):
    return tf.reduce_sum(x * y, axes, keepdims=True)

  angle = tf.acos(dot(a, b) / tf.sqrt(dot(a, a) * dot(b, b)))
  fraction = tf.reshape(fraction, [-1, 1, 1, 1])
  first = tf.sin((1.0 - fraction) * angle) * a
  return (first + tf.sin(fraction * angle) * b) / tf.sin(angle)


def _start(diffusion, rows, noise, image):
  """Where the process begins: at noise, or at an image that is noised so."""
  if image is None:
    return diffusion.prior_sigma * noise
  alpha, sigma = np.float32(rows['alpha'][0]), np.float32(rows['sigma'][0])
  return alpha * image + sigma * noise


def sample(
    network,
    diffusion,
    rows,
    *,
    start,
    keys,
    clip=True,
    known=None,
    animation=False,
    jit_compile=False,
    stop=0.0,
):
  """Runs the reverse process.

  Args:
    network: function (x float32 [B, H, W, C], time float32 [B]) -> output.
    diffusion: of `diffusion`, the process.
    rows: dict of `table`.
    start: float32 [B, H, W, C], x at the first row's level.
    keys: uint32 [B, 2], one key an image.
    clip: whether to clip each guess of x_0 to [-1, 1].
    known: image float32 [H, W, C] and mask bool [H, W, 1]: where the mask is
      not set each guess of x_0 is replaced by the image; None for nowhere.
    animation: whether to return the noisy images on the way, too.
    jit_compile: whether to compile a step with XLA. The loop stands outside,
      where it can be stopped, and takes no longer to compile for more steps.
    stop: scalar or variable on the host: the loop ends where it is not 0.

  Returns:
    float32 [B, H, W, C], about [-1, 1], and the animation, uint8
    [B, frames, H, W, C], or None: from the start on x, scaled so that
    alpha^2 + sigma^2 = 1.
  """
  num_rows = len(rows['t'])
  any_noise = np.any(rows['noise'])
  keeps = np.any(rows['from_previous'])
  columns = {
      name: tf.constant(column, tf.int32 if name == 't' else tf.float32)
      for name, column in rows.items()
  }

  @tf.function(jit_compile=jit_compile, autograph=False)
  def step(x, m, row):
    time = tf.fill([tf.shape(x)[0]], row['time'])
    level = process_lib.Level(row['alpha'], row['sigma'], time)
    output = diffusion.network_output(network, x, level)
    x0 = diffusion.predict_x0(x, level, output)
    if clip:
      x0 = tf.clip_by_value(x0, -1.0, 1.0)
    if known is not None:
      image, mask = known
      x0 = tf.where(mask, x0, image)
    new = row['from_x0'] * x0 + row['from_x'] * x
    if keeps:
      new += row['from_previous'] * m
      m = row['keep_x0'] * x0 + row['keep_x'] * x
    if any_noise:
      noise = row['noise']
      if 'log_beta' in row:
        share = diffusion.variance_share(output)
        log_variance = (
            share * row['log_beta'] + (1.0 - share) * row['log_posterior']
        )
        noise *= tf.exp(0.5 * log_variance)
      new += noise * rng.normal(rng.fold_in(keys, row['t']), x.shape[1:])
    return new, m

  # Which frame x is before each row, and at the end; -1 for none.
  frames = min(num_rows + 1, _MAX_FRAMES)
  shown = np.full(num_rows + 1, -1, np.int32)
  shown[np.linspace(0, num_rows, frames).astype(int)] = np.arange(frames)
  scale = np.append(np.hypot(rows['alpha'], rows['sigma']), 1.0)
  shown, scale = tf.constant(shown), tf.constant(scale, tf.float32)

  def show(written, i, x):
    return tf.cond(
        shown[i] < 0,
        lambda: written,
        lambda: written.write(shown[i], pixels.to_uint8(x / scale[i])),
    )

  def cond(i, *_):
    return (i < num_rows) & (tf.convert_to_tensor(stop) == 0)

  def body(i, x, m, *written):
    row = {name: column[i] for name, column in columns.items()}
    written = [show(w, i, x) for w in written]
    return i + 1, *step(x, m, row), *written

  loop = [tf.constant(0), start, tf.zeros_like(start)]
  if animation:
    loop.append(tf.TensorArray(tf.uint8, frames))
  i, x, _, *written = tf.while_loop(cond, body, loop)
  if not animation:
    return x, None
  written = show(written[0], i, x).stack()  # [frames, B, ...]
  return x, tf.transpose(written, [1, 0, 2, 3, 4])
