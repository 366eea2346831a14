"""Draws images from a model: the loop that runs over a solver's rows.

`diffusion/solvers.py` says what a row means. The noise z of a row depends only
on the image's own key and on the row's t.
"""

import hashlib

import numpy as np
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import solvers
from ddpm.nn.guidance import guided_network
from ddpm.run import build
from ddpm.runtime import device_map
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import UserError

# Of an animation; a process of more steps skips some.
_MAX_FRAMES = 61


class Sampler:
  """Draws images of a model; one call per batch runs the whole process.

  Attributes:
    spec: `solvers.SamplerSpec`.
    digest: of the spec and of the noise levels.
    is_noisy: whether it adds noise on the way.
    image_shape: (H, W, C).
    num_classes: of the model; 0 for an unconditional one.

  Args:
    model: `unet.UNet`.
    layout: its `flat.Layout`.
    process: `process.Process`.
    spec: `solvers.SamplerSpec`.
    batch_size: images drawn at once on each replica.
    jit_compile: whether to compile with XLA.
    stop: scalar, or variable of one, on the host: if it is not 0, the loop ends
      early, and its images are worthless.
    strategy: whose devices to use; None for the default device.
    init_image: uint8 [H, W, C], to start from or to inpaint; None for none.
    mask: bool [H, W, 1], where to inpaint; None for everywhere.
    strength: fraction of the process to run, from the noised init_image, with
      that fraction of the steps; 1 for all of it, from noise.
    animation: whether to draw the noisy images on the way as well.
  """

  def __init__(
      self,
      model,
      layout,
      process,
      spec,
      *,
      batch_size,
      jit_compile,
      stop=0.0,
      strategy=None,
      init_image=None,
      mask=None,
      strength=1.0,
      animation=False,
  ):
    number = max(1, round(strength * spec.steps))
    image = None if init_image is None else pixels.from_uint8(init_image)
    levels = solvers.steps_for(process, spec.sampler, number, strength=strength)
    rows = solvers.table(process, levels, sampler=spec.sampler, eta=spec.eta)
    self.spec = spec
    self.digest = _digest(rows, spec.guidance)
    self.is_noisy = bool(np.any(rows['noise']))
    self.image_shape = model.image_shape
    self.num_classes = model.num_classes
    self._model = model
    self._layout = layout
    self._process = process
    self._rows = rows
    self._image = image
    self._mask = mask
    self._starts_at_noise = strength == 1
    self._frames = _Frames(rows) if animation else None
    self._jit_compile = jit_compile
    self._stop = stop
    self._batched = device_map.DeviceMap(
        self.draw, strategy=strategy, batch_size=batch_size
    )

  def draw(self, params, seeds, labels, fractions=None):
    """Draws a batch of any size B, on tensors.

    Pixels that are not finite become 0.

    Args:
      params: float32 [P], weights of the model.
      seeds: int64 [B]; with fractions [B, 2].
      labels: int32 [B], classes.
      fractions: float32 [B]: the initial noise lies so far on the way from the
        first seed's to the second's; None for one seed each.

    Returns:
      uint8 [B, H, W, C]; an animation [B, frames, H, W, C]. And bool [B],
      whether all pixels of an image are finite.
    """
    if fractions is None:
      keys = rng.key(seeds)
      noise = self._initial_noise(keys)
    else:
      keys, other = rng.key(seeds[:, 0]), rng.key(seeds[:, 1])
      noise = slerp(
          self._initial_noise(keys), self._initial_noise(other), fractions
      )
    x, shown = sample(
        guided_network(
            self._model,
            self._layout,
            params,
            labels,
            guidance=self.spec.guidance,
        ),
        self._process,
        self._rows,
        start=self._start(noise),
        keys=keys,
        constrain=self._constrain,
        frames=self._frames,
        jit_compile=self._jit_compile,
        stop=self._stop,
    )
    finite = tf.reduce_all(tf.math.is_finite(x), axis=[1, 2, 3])
    return pixels.to_uint8(x) if shown is None else shown, finite

  def _initial_noise(self, keys):
    return initial_noise(self._process, keys, self.image_shape)

  def _start(self, noise):
    """Where sampling starts: noise, or an image noised to the first level."""
    if self._starts_at_noise:
      return self._process.prior_sigma * noise
    rows = self._rows
    alpha, sigma = np.float32(rows['alpha'][0]), np.float32(rows['sigma'][0])
    return alpha * self._image + sigma * noise

  def _constrain(self, x0):
    """Clips an estimate of x_0, and puts the known pixels back in."""
    x0 = pixels.clip(x0) if self.spec.clips else x0
    return x0 if self._mask is None else tf.where(self._mask, x0, self._image)

  def labels(self, seeds):
    """Default classes of seeds: seed mod num_classes; 0 without classes."""
    return (seeds % max(self.num_classes, 1)).astype(np.int32)

  def __call__(self, params, seeds, labels=None, fractions=None):
    """Draws an image for each seed, in batches.

    Args:
      params: float32 [P], weights of the model.
      seeds: int64 NumPy array [N], not negative; with fractions [N, 2].
      labels: int32 NumPy array [N], classes; None for `labels` of the (first)
        seeds.
      fractions: float32 NumPy array [N], or None: see `draw`.

    Yields:
      uint8 NumPy arrays [n, H, W, C] (an animation: [n, frames, H, W, C]), in
      the order of the seeds. An image depends only on its own seed and label.

    Raises:
      UserError: an image is not finite.
    """
    if labels is None:
      labels = self.labels(seeds.reshape(len(seeds), -1)[:, 0])
    between = [] if fractions is None else [fractions]
    done = 0
    for images, finite in self._batched(params, seeds, labels, *between):
      if not finite.all():
        seed = seeds[done + int(finite.argmin())]
        raise UserError(
            f'the image of seed {seed} has pixels that are not finite, so the'
            ' network overflows: use precision float32, less guidance, or'
            ' another checkpoint'
        )
      done += len(images)
      yield images


def for_run(
    run,
    sampler=None,
    *,
    steps=None,
    eta=None,
    guidance=1.0,
    strategy=None,
    jit_compile=True,
    **kwargs,
):
  """Makes the sampler of a run's model.

  Args:
    run: `reader.Run`.
    sampler: see `build.make_sampler_spec`, as steps, eta and guidance.
    steps: of the reverse process.
    eta: noise on the way.
    guidance: scale of classifier-free guidance.
    strategy: single-process `tf.distribute.Strategy`; None for the default
      device, without XLA.
    jit_compile: whether to compile with XLA, if the config does.
    **kwargs: of `Sampler`.

  Returns:
    `Sampler`.

  Raises:
    BadArgument: an argument is out of range, or not supported by the model.
  """
  try:
    spec = build.make_sampler_spec(
        run.config, sampler, steps=steps, eta=eta, guidance=guidance
    )
  except ValueError as e:
    raise BadArgument(str(e)) from e
  return Sampler(
      run.model,
      run.layout,
      run.diffusion,
      spec,
      strategy=strategy,
      jit_compile=jit_compile and build.jit_compile(run.config, strategy),
      **kwargs,
  )


def _digest(rows, guidance):
  """A short name of all that a sampler's images depend on, but the weights."""
  # c_in, c_skip and c_out follow from the levels.
  names = sorted(set(rows) - {'c_in', 'c_skip', 'c_out'})
  data = b''.join(rows[name].tobytes() for name in names)
  data += np.float64(guidance).tobytes()
  return hashlib.sha256(data).hexdigest()[:8]


def initial_noise(process, keys, image_shape):
  """Standard normal noise [B, H, W, C] that sampling starts from.

  Its key differs from those of the steps' noise: timesteps stop at T - 1.
  """
  return rng.normal(rng.fold_in(keys, process.num_timesteps), image_shape)


def slerp(a, b, fraction):
  """Interpolates from a, at 0, to b, at 1, on a great circle (Shoemake 1985).

  On the straight line the norm, hence the noise, would be too small.

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


def sample(
    network,
    process,
    rows,
    *,
    start,
    keys,
    constrain=lambda x0: x0,
    frames=None,
    jit_compile=False,
    stop=0.0,
):
  """Runs the reverse process.

  Args:
    network: function (x float32 [B, H, W, C], time float32 [B]) -> output.
    process: `process.Process`.
    rows: dict of `solvers.table`.
    start: float32 [B, H, W, C], x at the first row's level.
    keys: uint32 [B, 2], one key per image.
    constrain: function applied to each estimate of x_0: to clip it, or to
      put a known part of the image back in.
    frames: `_Frames` to record; None for none.
    jit_compile: whether to compile a row with XLA. The loop stays outside: it
      can be stopped, and compiles as fast for any number of steps.
    stop: scalar or variable on the host: the loop ends if it is not 0.

  Returns:
    float32 [B, H, W, C], about [-1, 1], and the recorded frames or None.
  """
  num_rows = len(rows['t'])
  is_noisy = np.any(rows['noise'])
  has_previous = np.any(rows['from_previous'])
  columns = {
      name: tf.constant(column, tf.int32 if name == 't' else tf.float32)
      for name, column in rows.items()
  }

  @tf.function(jit_compile=jit_compile, autograph=False)
  def step(x, m, row):
    time = tf.fill([tf.shape(x)[0]], row['time'])
    output, share = process.split(network(row['c_in'] * x, time))
    x0 = constrain(row['c_skip'] * x + row['c_out'] * output)
    new = row['from_x0'] * x0 + row['from_x'] * x
    if has_previous:
      new += row['from_previous'] * m
      m = row['keep_x0'] * x0 + row['keep_x'] * x
    if is_noisy:
      noise = row['noise']
      if 'log_beta' in row:
        log_variance = (
            share * row['log_beta'] + (1.0 - share) * row['log_posterior']
        )
        noise *= tf.exp(0.5 * log_variance)
      new += noise * rng.normal(rng.fold_in(keys, row['t']), x.shape[1:])
    return new, m

  def cond(i, *_):
    return (i < num_rows) & (tf.convert_to_tensor(stop) == 0)

  def body(i, x, m, *recorded):
    row = {name: column[i] for name, column in columns.items()}
    recorded = [frames.record(array, i, x) for array in recorded]
    return i + 1, *step(x, m, row), *recorded

  recorded = [frames.empty()] if frames else []
  i, x, _, *recorded = tf.while_loop(
      cond, body, [tf.constant(0), start, tf.zeros_like(start), *recorded]
  )
  return x, frames.finish(recorded[0], i, x) if frames else None


class _Frames:
  """Records an animation: the noisy images before some of the rows, and x_0.

  They are scaled to alpha^2 + sigma^2 = 1.
  """

  def __init__(self, rows):
    num_rows = len(rows['t'])
    self._number = min(num_rows + 1, _MAX_FRAMES)
    # Which frame x is before each row and at the end; -1 for none.
    shown = np.full(num_rows + 1, -1, np.int32)
    where = np.linspace(0, num_rows, self._number).astype(int)
    shown[where] = np.arange(self._number)
    self._shown = shown
    self._scale = np.append(np.hypot(rows['alpha'], rows['sigma']), 1.0)

  def empty(self):
    return tf.TensorArray(tf.uint8, self._number)

  def record(self, array, i, x):
    """Writes x to the array, if the i-th row begins with a frame."""
    frame = tf.constant(self._shown)[i]
    scale = tf.constant(self._scale, tf.float32)[i]
    return tf.cond(
        frame < 0,
        lambda: array,
        lambda: array.write(frame, pixels.to_uint8(x / scale)),
    )

  def finish(self, array, i, x):
    """All frames, the final x last: uint8 [B, frames, H, W, C]."""
    return tf.transpose(self.record(array, i, x).stack(), [1, 0, 2, 3, 4])
