"""Pictures inside a page: PNG files as data URIs."""

import base64
import dataclasses
import io

import numpy as np
from PIL import Image
import tensorflow as tf

from ddpm.sampling import pictures

# Larger pictures are shrunk by an integer factor; beside others, more so.
MOST_PIXELS, BESIDE_PIXELS = 448, 256

# Smaller ones are enlarged even on a phone.
_SMALL_PIXELS = 320

# Grids of a run: their number, and about how many bytes they may take.
_GRIDS, _GRIDS_BYTES = 24, 1_500_000


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of a page.

  Attributes:
    alt: it in words.
    png: the file's bytes.
    width, height: in pixels.
  """

  alt: str
  png: bytes
  width: int
  height: int

  @property
  def is_small(self):
    """Whether a page enlarges it, so that its pixels are to be seen."""
    return self.width < _SMALL_PIXELS

  @property
  def uri(self):
    """Its file, as a page has it."""
    return f'data:image/png;base64,{base64.b64encode(self.png).decode()}'


def of_pixels(pixels, alt):
  """A picture of uint8 [H, W, C], with 1, 3 or 4 channels."""
  return _encode(pictures.to_image(pixels), alt)


def of_frames(frames, alt):
  """An animation of frames uint8 [H, W, C], which begin with noise."""
  png = pictures.animation(frames)
  image = Image.open(io.BytesIO(png))
  return Picture(alt, png, *image.size)


def of_grids(grids):
  """Pictures of a run's grids: as many as a page has room for, both ends kept.

  Args:
    grids: dict of step -> path.

  Returns:
    Dict of step -> `Picture`, without those that cannot be read.
  """
  if not grids:
    return {}
  steps = np.array(list(grids))
  last = of_grid(steps[-1], grids[steps[-1]])
  room = max(2, _GRIDS_BYTES // len(last.png)) if last else 2
  number = min(room, len(steps), _GRIDS)
  kept = np.unique(np.linspace(0, len(steps) - 1, number).astype(int))
  drawn = {step: of_grid(step, grids[step]) for step in steps[kept].tolist()}
  return {step: picture for step, picture in drawn.items() if picture}


def of_grid(step, path, most=MOST_PIXELS):
  """The picture of a step's grid, or None if the file cannot be read."""
  try:
    with tf.io.gfile.GFile(path, 'rb') as f:
      image = Image.open(io.BytesIO(f.read()))
      image.load()
  except (OSError, tf.errors.OpError):  # OSError: it is no picture, too.
    return None
  return _encode(image, f'Samples at step {step:,}, of the same seeds.', most)


def _encode(image, alt, most=MOST_PIXELS):
  image = pictures.shrunk(image, most)
  file = io.BytesIO()
  image.save(file, 'png')
  return Picture(alt, file.getvalue(), *image.size)
