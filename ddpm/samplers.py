"""The reverse process: from noise to images, as one loop of tensors.

A sampler is a table of coefficients, one row for each time that the network
is asked, made in float64; the loop is the same for all. It carries x and a
memory m, and a row says

  x' = x_x0 * x_0 + x_x * x + x_m * m + noise * z,   z ~ N(0, I)
  m' = m_x0 * x_0 + m_x * x

where x_0 is the network's guess, clipped to [-1, 1] as Ho's code does (but for
'heun', as Karras et al.), and z depends on the image's own key and on t alone.
"""

import hashlib

import numpy as np
import tensorflow as tf

from ddpm import diffusion as diffusion_lib
from ddpm import parallel
from ddpm import rng

SAMPLERS = ('ancestral', 'ddim', 'dpmpp_2m', 'heun')
_TAKE_ETA = ('ddim', 'dpmpp_2m')

# Of a film; a process of more steps skips some.
_MOST_FRAMES = 61


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
      [B, H, W, C] (of a film [B, frames, H, W, C]), of tensors, any number of
      them. With seeds [B, 2] and a fourth argument, fractions float32 [B], the
      first noise lies between that of two seeds.

  Args:
    model: `unet.UNet`.
    layout: its `state.Layout`.
    diffusion: of `diffusion`, the process.
    sampler: one of SAMPLERS.
    steps: steps of the reverse process, 1 to T.
    guidance: scale of classifier-free guidance; 1 for none.
    eta: of ddim.
    batch_size: images that are drawn at once, on each replica.
    jit_compile: whether to compile with XLA.
    stop: scalar, or variable of one, on the host: where it is not 0 the loop
      ends early, and its images are none.
    strategy: on whose devices; None for the default one.
    image: uint8 [H, W, C], to begin with or to paint in; None for none.
    mask: bool [H, W, 1], where to paint; None for everywhere.
    at: fraction of the process that is gone through, from the noised image on,
      with that share of the steps; 1 for all of it, from noise.
    film: whether to draw the noisy images on the way, too.
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
      image=None,
      mask=None,
      at=1.0,
      film=False,
  ):
    number = max(1, round(at * steps))
    if image is not None:
      image = image.astype(np.float32) / 127.5 - 1.0
    rows = table(
        diffusion, steps_for(diffusion, sampler, number, at=at),
        sampler=sampler, eta=eta,
    )  # fmt: skip
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
        noise = first_noise(diffusion, keys, shape)
      else:
        keys, other = rng.key(seeds[:, 0]), rng.key(seeds[:, 1])
        noise = slerp(
            first_noise(diffusion, keys, shape),
            first_noise(diffusion, other, shape),
            fractions,
        )
      x, frames = sample(
          bind(model, layout, params, labels, guidance=guidance),
          diffusion,
          rows,
          start=_start(diffusion, rows, noise, None if at == 1.0 else image),
          keys=keys,
          clip=sampler != 'heun',
          known=None if mask is None else (image, mask),
          film=film,
          jit_compile=jit_compile,
          stop=stop,
      )
      return to_images(x) if frames is None else frames

    self.draw = draw
    self._batched = parallel.Batched(
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
      uint8 NumPy arrays [n, H, W, C] (of a film [n, frames, H, W, C]), in the
      order of the seeds. An image depends on its own seed and label alone.
    """
    if labels is None:
      labels = self.labels(seeds.reshape(len(seeds), -1)[:, 0])
    between = [] if fractions is None else [fractions]
    yield from self._batched(params, seeds, labels, *between)


def bind(model, layout, params, labels, *, guidance=1.0):
  """A network with its weights and its batch's labels.

  Args:
    model: `unet.UNet`.
    layout: its `state.Layout`.
    params: float32 [P].
    labels: int32 [B]; not looked at where the model has no classes.
    guidance: scale s of classifier-free guidance (Ho and Salimans 2021, whose
      w is s - 1): none + s (class - none); 1 for none of it. A model with a
      null class alone knows 'none'.

  Returns:
    Function (x float32 [B, H, W, C], time [B]) -> the model's output.
  """
  weights = layout.split(params)

  def ask(x, time, labels):
    output, _ = model.stateless_call(weights, [], x, time, labels=labels)
    return output

  def network(x, time):
    if not model.num_classes:
      return ask(x, time, None)
    if guidance == 1.0:
      return ask(x, time, labels)
    none = tf.fill(tf.shape(labels), model.num_classes)
    output = ask(
        tf.concat([x, x], 0),
        tf.concat([time, time], 0),
        tf.concat([labels, none], 0),
    )
    given, none = tf.split(output, 2)
    # A learned variance, the channels after the image's, is the class's.
    channels = x.shape[-1]
    guided = none + guidance * (given - none)
    return tf.concat([guided[..., :channels], given[..., channels:]], -1)

  return network


def first_noise(diffusion, keys, image_shape):
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


def steps_for(diffusion, sampler, number, *, at=1.0):
  """The `diffusion.Steps` that a sampler takes.

  Those of second order go along lines in sigma / alpha, which evenly spaced
  timesteps may cut to a thousandth in one step: they take Karras et al.'s.
  """
  by_noise = sampler in ('dpmpp_2m', 'heun')
  return diffusion.steps(number, by_noise=by_noise, at=at)


def table(diffusion, steps, *, sampler, eta=0.0):
  """The table of a sampler.

  Args:
    diffusion: of `diffusion`, the process.
    steps: its `diffusion.Steps`, N of them.
    sampler: 'ancestral', equations 6 and 7 of Ho et al. 2020, with the
      process's variance; 'ddim', equation 12 of Song et al. 2021; 'dpmpp_2m',
      algorithm 2 of Lu et al. 2022, "DPM-Solver++"; 'heun', algorithm 1 of
      Karras et al. 2022, which asks the network 2 N - 1 times.
    eta: of ddim, 0 for no noise, 1 for the posterior's; of dpmpp_2m, 1 for
      their SDE-DPM-Solver++, and between as in k-diffusion.

  Returns:
    Dict of NumPy arrays [rows], float64 but for the number 't': the levels'
    alpha, sigma and time, and the coefficients of the loop; with a learned
    variance log_beta and log_posterior, between which a step's lies, too. The
    last step adds no noise.

  Raises:
    ValueError: an unknown sampler.
  """
  if sampler not in SAMPLERS:
    raise ValueError(f'sampler is {sampler!r}, expected one of {SAMPLERS}')
  alpha, sigma = steps.alpha, steps.sigma
  # Where each step goes to; the last one's end is the clean image.
  alpha_s, sigma_s = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
  zeros = np.zeros(len(alpha))
  rows = {
      't': steps.t, 'time': steps.time, 'alpha': alpha, 'sigma': sigma,
      'x_m': zeros, 'm_x0': zeros, 'm_x': zeros, 'noise': zeros,
  }  # fmt: skip
  if sampler == 'ancestral':
    coef = diffusion_lib.posterior(alpha, sigma, alpha_s, sigma_s)
    rows |= {'x_x0': coef['coef_x0'], 'x_x': coef['coef_xt']}
    if diffusion.variance == 'learned_range':
      # The last step, which adds no noise, has no logarithm.
      variance = np.append(coef['variance'][:-1], 1.0)
      return rows | {
          'noise': (sigma_s > 0).astype(np.float64),
          'log_beta': np.log(coef['beta']),
          'log_posterior': np.log(variance),
      }
    large = diffusion.variance == 'fixedlarge'
    noise = coef['beta' if large else 'variance']
    return rows | {'noise': np.sqrt(noise) * (sigma_s > 0)}
  # What the others have in their first order: a part of the noise stays, in
  # eps = (x_t - alpha_t x_0) / sigma_t, and the rest is new.
  noise = zeros
  if sampler == 'ddim':
    coef = diffusion_lib.posterior(alpha, sigma, alpha_s, sigma_s)
    noise = eta * np.sqrt(coef['variance'])
  elif sampler == 'dpmpp_2m':
    stays = (sigma_s / alpha_s * alpha / sigma) ** eta  # exp(-eta h)
    noise = sigma_s * np.sqrt(1.0 - stays**2)
  ratio = np.sqrt(sigma_s**2 - noise**2) / sigma
  rows |= {'x_x0': alpha_s - alpha * ratio, 'x_x': ratio, 'noise': noise}
  if sampler == 'dpmpp_2m':
    rows |= _second_order(alpha, sigma, rows['x_x0'])
  elif sampler == 'heun':
    rows = _heun(rows)
  return rows


def default_steps(sampler, num_timesteps):
  """Steps that make good images, for who names a sampler and no number."""
  # Ancestral is the process itself; the others are made for few steps.
  few = {'ancestral': num_timesteps, 'ddim': 50, 'dpmpp_2m': 25, 'heun': 18}
  return min(few[sampler], num_timesteps)


def check_eta(sampler, eta, name):
  """Raises ValueError if a sampler has no such eta."""
  if not 0.0 <= eta <= 1.0:
    raise ValueError(f'{name} is {eta}, expected 0 to 1')
  if eta and sampler not in _TAKE_ETA:
    raise ValueError(
        f'{name} is {eta}, which is of {" and ".join(_TAKE_ETA)}, but the'
        f' sampler is {sampler}'
    )


def _second_order(alpha, sigma, x_x0):
  """The multistep part: x_0 is extrapolated from the guess before it.

  With h the step in lambda = log(alpha / sigma), x_0 becomes
  (1 + 1 / (2 r)) x_0 - 1 / (2 r) m with r = h_before / h. The first step has no
  guess before it, and the last one, to where lambda has no end, takes none.
  """
  h = np.diff(np.log(alpha / sigma))  # [N - 1], of steps 0 to N - 2
  extra = np.zeros(len(alpha))
  extra[1:-1] = h[1:] / (2.0 * h[:-1])
  return {
      'x_x0': (1.0 + extra) * x_x0,
      'x_m': -extra * x_x0,
      'm_x0': np.ones(len(alpha)),
  }


def _heun(rows):
  """Each step but the last asks twice: at its start, and where that leads.

  In x / alpha and s = sigma / alpha the slope is d = (x - x_0) / s. The first
  row goes the whole step along it, and remembers where half of it leads; the
  second one adds its half.
  """
  alpha, sigma = rows['alpha'], rows['sigma']
  n = len(alpha)
  s = sigma / alpha
  half = np.append(np.diff(s), 0.0) / 2.0
  end = np.append(alpha[1:], 1.0)
  start = rows | {
      'm_x0': -end * half / s,
      'm_x': end * (1.0 + half / s) / alpha,
  }  # fmt: skip
  # Of step i, at the level that it goes to.
  i = np.arange(n - 1)
  finish = {name: column[i + 1] for name, column in rows.items()}
  finish |= {
      'x_x0': -end[i] * half[i] / s[i + 1],
      'x_x': end[i] * half[i] / s[i + 1] / alpha[i + 1],
      'x_m': np.ones(n - 1),
  }
  both = {}
  for name, column in start.items():
    both[name] = np.empty(2 * n - 1, column.dtype)
    both[name][::2], both[name][1::2] = column, finish[name]
  return both


def sample(
    network,
    diffusion,
    rows,
    *,
    start,
    keys,
    clip=True,
    known=None,
    film=False,
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
    film: whether to return the noisy images on the way, too.
    jit_compile: whether to compile a step with XLA. The loop stands outside,
      where it can be stopped, and takes no longer to compile for more steps.
    stop: scalar or variable on the host: the loop ends where it is not 0.

  Returns:
    float32 [B, H, W, C], about [-1, 1], and the film, uint8 [B, frames, H, W,
    C], or None: from the start on x, scaled so that alpha^2 + sigma^2 = 1.
  """
  num_rows = len(rows['t'])
  any_noise = np.any(rows['noise'])
  any_memory = np.any(rows['x_m'])
  columns = {
      name: tf.constant(column, tf.int32 if name == 't' else tf.float32)
      for name, column in rows.items()
  }

  @tf.function(jit_compile=jit_compile, autograph=False)
  def step(x, m, row):
    time = tf.fill([tf.shape(x)[0]], row['time'])
    level = diffusion_lib.Level(row['alpha'], row['sigma'], time)
    output = diffusion.network_output(network, x, level)
    x0 = diffusion.predict_x0(x, level, output)
    if clip:
      x0 = tf.clip_by_value(x0, -1.0, 1.0)
    if known is not None:
      image, mask = known
      x0 = tf.where(mask, x0, image)
    new = row['x_x0'] * x0 + row['x_x'] * x
    if any_memory:
      new += row['x_m'] * m
      m = row['m_x0'] * x0 + row['m_x'] * x
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

  # Which frame of the film x is before each row, and at the end; -1 for none.
  frames = min(num_rows + 1, _MOST_FRAMES)
  shown = np.full(num_rows + 1, -1, np.int32)
  shown[np.linspace(0, num_rows, frames).astype(int)] = np.arange(frames)
  scale = np.append(np.hypot(rows['alpha'], rows['sigma']), 1.0)
  shown, scale = tf.constant(shown), tf.constant(scale, tf.float32)

  def show(written, i, x):
    return tf.cond(
        shown[i] < 0,
        lambda: written,
        lambda: written.write(shown[i], to_images(x / scale[i])),
    )

  def cond(i, *_):
    return (i < num_rows) & (tf.convert_to_tensor(stop) == 0)

  def body(i, x, m, *written):
    row = {name: column[i] for name, column in columns.items()}
    written = [show(w, i, x) for w in written]
    return i + 1, *step(x, m, row), *written

  loop = [tf.constant(0), start, tf.zeros_like(start)]
  if film:
    loop.append(tf.TensorArray(tf.uint8, frames))
  i, x, _, *written = tf.while_loop(cond, body, loop)
  if not film:
    return x, None
  written = show(written[0], i, x).stack()  # [frames, B, ...]
  return x, tf.transpose(written, [1, 0, 2, 3, 4])


def to_images(x):
  """[-1, 1] to [0, 255], rounded, as Ho's code: uint8 of the same shape."""
  x = tf.clip_by_value((x + 1.0) * 127.5, 0.0, 255.0)
  return tf.cast(tf.round(x), tf.uint8)
