"""Reads users' pictures and writes animations."""

import io

import numpy as np
from PIL import Image
from PIL import ImageOps
import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime import words
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# Duration of an animation, and of its last frame.
_ANIMATION_SECONDS = 4.0

_END_SECONDS = 2.0

# Maximum height and width of an animation, because noise does not compress.
_ANIMATION_PIXELS = 1024


def read(path, shape):
  """Reads a picture, cropped and resized to a model's image shape.

  Args:
    path: the file's path, local or in a bucket.
    shape: (H, W, C) of the model's images; C is 1 or 3.

  Returns:
    uint8 [H, W, C].

  Raises:
    UserError: the file is not a picture, or C is not 1 or 3.
  """
  height, width, channels = shape
  modes = {1: 'L', 3: 'RGB'}
  if channels not in modes:
    raise UserError(
        f'{path}: the model draws {channels} channels, expected 1 or 3'
    )
  picture = _open(path).convert(modes[channels])
  picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
  return np.asarray(picture).reshape(shape)


def read_mask(path, picture_path, shape):
  """Reads a mask: white marks the pixels to repaint.

  Args:
    path: the mask's path.
    picture_path: path of the picture, which must have the same size.
    shape: (H, W, C) of the model's images.

  Returns:
    bool [H, W, 1].

  Raises:
    UserError: the mask is not a picture, differs in size, or has no white.
  """
  mask, picture = _open(path), _open(picture_path)
  if mask.size != picture.size:
    raise UserError(
        f'{path} is {words.dimensions(mask.size)} pixels, but {picture_path} is'
        f' {words.dimensions(picture.size)}: a mask needs the size of its'
        ' picture'
    )
  height, width, _ = shape
  mask = ImageOps.fit(
      mask.convert('L'), (width, height), Image.Resampling.NEAREST
  )
  mask = np.asarray(mask)[..., None] >= 128
  if not mask.any():
    raise UserError(f'{path} has no white: paint white what is to be repainted')
  return mask


def write_animation(path, frames):
  """Writes an animated PNG atomically.

  Args:
    path: the file's path, local or in a bucket.
    frames: list of uint8 [H, W, C]; C is 1 or 3. Large ones are shrunk by an
      integer factor.
  """
  shrink = -(-max(frames[0].shape[:2]) // _ANIMATION_PIXELS)
  pictures = [Image.fromarray(f.squeeze(2) if f.shape[2] == 1 else f)
              for f in frames]  # fmt: skip
  pictures = [picture.reduce(shrink) for picture in pictures]
  milliseconds = [1000.0 * _ANIMATION_SECONDS / len(frames)] * len(frames)
  milliseconds[-1] = 1000.0 * _END_SECONDS
  file = io.BytesIO()
  pictures[0].save(
      file, 'png', save_all=True, append_images=pictures[1:],
      duration=milliseconds, loop=0,
  )  # fmt: skip
  files.write_file(path, file.getvalue())


def _open(path):
  try:
    with tf.io.gfile.GFile(path, 'rb') as f:
      picture = Image.open(io.BytesIO(f.read()))
    # Cameras store the orientation as metadata.
    return ImageOps.exif_transpose(picture)
  except tf.errors.OpError as e:
    raise UserError(f'{path} cannot be read: {reason(e)}') from e
  except (OSError, SyntaxError, ValueError,
          Image.DecompressionBombError) as e:  # fmt: skip
    raise UserError(f'{path} is not a picture, or damaged') from e
