"""What a report shows that has to be drawn first, from a run's newest weights.

Everything is drawn with the run's first EMA, from fixed seeds.
"""

import dataclasses

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.metrics import real_images
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.run import reader
from ddpm.runtime import device_map
from ddpm.runtime import png
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import UserError
from ddpm.sampling import sampler as sampler_lib

# Images side by side in a row.
COLUMNS = 8

# Of the animation; the first of them have their nearest training images shown.
_SEEDS = np.arange(16)

# Pairs of seeds to interpolate between.
_PAIRS = np.array([[0, 1], [2, 3], [4, 5]])

_MOST_CLASSES = 10

# Pixels of a side of the animated grid, and values of all of its frames: noise
# does not compress.
_ANIMATED_SIZE, _ANIMATED_VALUES = 160, 750_000
_MOST_FRAMES = 31

# Training images that the nearest ones are looked for among, how many are in
# memory, and the size that they are compared at.
_SEARCHED, _BLOCK, _COMPARED_SIZE = 50_000, 2000, 32


@dataclasses.dataclass(frozen=True)
class Drawings:
  """Pictures of a run; uint8 [H, W, C] each.

  Attributes:
    step: of the weights.
    weights: their name.
    sampler: what drew all but `between`, in words.
    frames: a grid on its way from noise to images.
    process: the same, as a row of COLUMNS moments for some of the seeds.
    between: a row of interpolations for each pair of seeds.
    between_sampler: what drew them.
    nearest: a row of samples, and their nearest training images below.
    distances: float64 [COLUMNS], root mean square differences of pixels in
      [0, 1].
    searched: training images that they are the nearest of; 0 if the data could
      not be read: `nearest` is None.
    why_not: the reason, then.
    classes: a row for each of the first classes; None without classes.
    num_classes: rows of it.
  """

  step: int
  weights: str
  sampler: str
  frames: list
  process: np.ndarray
  between: np.ndarray
  between_sampler: str
  nearest: np.ndarray | None
  distances: np.ndarray | None
  searched: int
  why_not: str
  classes: np.ndarray | None
  num_classes: int


def draw(workdir):
  """Draws from the newest checkpoint of a workdir.

  Returns:
    `Drawings`.

  Raises:
    UserError: it has no checkpoint that can be read.
  """
  run = reader.Run(workdir)
  strategy = strategy_lib.local_strategy(
      len(_SEEDS),
      virtual_devices=run.config.distribute.virtual_devices,
      jit_compile=run.config.jit_compile,
  )
  path = checkpoint.find(workdir, 'latest')
  step, weights, params = run.weights(path, 'ema')
  logging.info('step %d: drawing for the report', step)

  def sampler_of(number, *args, **kwargs):
    size = device_map.batch_size(strategy, number)
    return sampler_lib.for_run(
        run, *args, batch_size=size, strategy=strategy, **kwargs
    )

  animated = sampler_of(len(_SEEDS), animation=True)
  films = np.concatenate(list(animated(params, _SEEDS)))
  between = sampler_of(_PAIRS.size // 2 * COLUMNS, 'dpmpp_2m', eta=0.0)
  samples = films[:COLUMNS, -1]
  nearest, distances, searched, why_not = _nearest_of(run, samples)
  classes = min(run.config.model.num_classes, _MOST_CLASSES)
  return Drawings(
      step=step,
      weights=weights,
      sampler=_in_words(animated.spec),
      frames=_frames(films),
      process=_process(films),
      between=_between(between, params),
      between_sampler=_in_words(between.spec),
      nearest=nearest,
      distances=distances,
      searched=searched,
      why_not=why_not,
      classes=_classes(sampler_of, params, classes) if classes else None,
      num_classes=classes,
  )


def _in_words(spec):
  return f'{spec.sampler}, {spec.steps} steps, eta {spec.eta:g}'


def _frames(films):
  """Frames of an animation, as grids of as many images as are clear."""
  size = max(films.shape[2:4])
  fitting = [n for n in (4, 3, 2) if n * size <= _ANIMATED_SIZE]
  # Pixels are left out, because the mean of several is less noisy.
  step = -(-size // _ANIMATED_SIZE)
  films = films[: max(fitting, default=1) ** 2, :, ::step, ::step]
  grids = [png.grid(images) for images in films.swapaxes(0, 1)]
  most = max(2, min(_MOST_FRAMES, _ANIMATED_VALUES // grids[0].size))
  where = np.linspace(0, len(grids) - 1, min(most, len(grids))).astype(int)
  return [grids[i] for i in where]


def _process(films):
  """A grid with a row of moments for each of four images."""
  where = np.linspace(0, films.shape[1] - 1, COLUMNS).astype(int)
  moments = films[:4, where]
  return png.grid(moments.reshape(-1, *films.shape[2:]), columns=COLUMNS)


def _between(sampler, params):
  """A grid with a row of COLUMNS images from each seed of a pair to the other.
  """
  fractions = np.linspace(0.0, 1.0, COLUMNS, dtype=np.float32)
  images = sampler(
      params,
      np.repeat(_PAIRS, COLUMNS, axis=0),
      fractions=np.tile(fractions, len(_PAIRS)),
  )
  return png.grid(np.concatenate(list(images)), columns=COLUMNS)


def _classes(sampler_of, params, classes):
  """A grid with the same seeds in a row for each class."""
  sampler = sampler_of(classes * COLUMNS)
  seeds = np.tile(np.arange(COLUMNS), classes)
  labels = np.repeat(np.arange(classes, dtype=np.int32), COLUMNS)
  images = np.concatenate(list(sampler(params, seeds, labels)))
  return png.grid(images, columns=COLUMNS)


def _nearest_of(run, samples):
  """The attributes nearest, distances, searched and why_not of `Drawings`."""
  settings = build.data_settings(run.config)
  try:
    real = real_images.RealImages(
        run.config.data.name, run.model.image_shape, **settings
    ).split(run.config.data.split)
    searched = min(len(real), _SEARCHED)
    found, distances = nearest(samples, real, searched)
  except UserError as e:
    return None, None, 0, str(e)
  both = png.grid(np.concatenate([samples, found]), columns=len(samples))
  return both, distances, searched, ''


def nearest(samples, source, number):
  """The nearest of a source's first images to each sample.

  Args:
    samples: uint8 [N, H, W, C].
    source: see `metrics.sources`.
    number: of its images to compare with.

  Returns:
    uint8 [N, H, W, C], and their distances float64 [N]: the root mean square
    difference of pixels in [0, 1], of images averaged down to 32 x 32.
  """
  pixels = _pixels(samples)
  best = np.full(len(samples), np.inf)
  images = np.zeros_like(samples)
  for start in range(0, number, _BLOCK):
    block = source.read(start, min(start + _BLOCK, number))
    candidates = _pixels(block)
    for i, x in enumerate(pixels):
      squared = np.square(candidates - x).mean(axis=1)
      k = squared.argmin()
      if squared[k] < best[i]:
        best[i], images[i] = squared[k], block[k]
  return images, np.sqrt(best)


def _pixels(images):
  """Pixels in [0, 1], float32 [N, D]."""
  size = [min(n, _COMPARED_SIZE) for n in images.shape[1:3]]
  if list(images.shape[1:3]) != size:
    images = tf.image.resize(images, size, method='area').numpy()
  return images.reshape(len(images), -1) / np.float32(255)
