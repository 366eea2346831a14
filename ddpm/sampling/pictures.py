"""Reads users' pictures and writes animations."""

import io

from PIL import Image

from ddpm.data import decode
from ddpm.data import folder
from ddpm.data import resize
from ddpm.runtime import files
from ddpm.runtime import words
from ddpm.runtime.errors import UserError

# Duration of an animation, and of its last frame.
_ANIMATION_SECONDS = 4.0

_END_SECONDS = 2.0

# Maximum height and width of an animation, because noise does not compress.
_ANIMATION_PIXELS = 1024


def read(path, shape, rule):
  """Reads a picture as the images that a model was trained on.

  Args:
    path: the file's path, local or in a bucket.
    shape: (H, W, C) of the model's images.
    rule: by which it is resized, one of `resize.RULES`.

  Returns:
    uint8 [H, W, C].

  Raises:
    UserError: the file is not a picture, or no picture has C channels.
  """
  height, width, channels = shape
  if channels not in decode.MODES:
    raise UserError(
        f'{path}: the model draws {channels} channels, expected 1, 3 or 4'
    )
  return resize.fit(_decode(path, channels), height, width, rule).numpy()


def read_mask(path, picture_path, shape, rule):
  """Reads a mask: white marks the pixels to repaint.

  Args:
    path: the mask's path.
    picture_path: path of the picture, which must have the same size.
    shape: (H, W, C) of the model's images.
    rule: by which the picture is resized.

  Returns:
    bool [H, W, 1].

  Raises:
    UserError: the mask is not a picture, differs in size, or has no white.
  """
  mask, picture = _decode(path, 1), _decode(picture_path, 1)
  if mask.shape != picture.shape:
    sizes = [words.dimensions(x.shape[1::-1]) for x in (mask, picture)]
    raise UserError(
        f'{path} is {sizes[0]} pixels, but {picture_path} is {sizes[1]}: a mask'
        ' needs the size of its picture'
    )
  height, width, _ = shape
  mask = resize.fit(mask, height, width, rule, method='nearest').numpy() >= 128
  if not mask.any():
    raise UserError(f'{path} has no white: paint white what is to be repainted')
  return mask


def write_animation(path, frames):
  """Writes an animated PNG atomically; see `animation`."""
  files.write_file(path, animation(frames))


def animation(frames):
  """An animated PNG.

  Args:
    frames: list of uint8 [H, W, C]; C is 1 or 3. Large ones are shrunk by an
      integer factor.

  Returns:
    The file's bytes.
  """
  pictures = [shrunk(to_image(frame), _ANIMATION_PIXELS) for frame in frames]
  milliseconds = [1000.0 * _ANIMATION_SECONDS / len(frames)] * len(frames)
  milliseconds[-1] = 1000.0 * _END_SECONDS
  file = io.BytesIO()
  pictures[0].save(
      file, 'png', save_all=True, append_images=pictures[1:],
      duration=milliseconds, loop=0,
  )  # fmt: skip
  return file.getvalue()


def to_image(pixels):
  """Pillow's image of uint8 [H, W, C], with 1, 3 or 4 channels."""
  return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def shrunk(image, most):
  """An image that is not larger than so many pixels, by an integer factor."""
  factor = -(-max(image.size) // most)
  return image.reduce(factor) if factor > 1 else image


def _decode(path, channels):
  try:
    return folder.read(path, channels)
  except decode.BrokenImage as e:
    raise UserError(f'{path} cannot be read as a picture: {e}') from e
