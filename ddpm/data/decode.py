"""Image files of any kind, as arrays of one kind."""

import io

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
import tensorflow as tf

from ddpm.runtime.errors import reason

# What Pillow raises for files that are not whole.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError,
    OverflowError, MemoryError, Image.DecompressionBombError,
)  # fmt: skip

# Where Pillow finds the orientation of a PNG file.
_PNG_METADATA = (b'eXIf', b'Raw profile type', b'XML:com.adobe.xmp')

# By number of channels.
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class BrokenImage(Exception):
  """A file that is not a whole image; the message is the reason."""


def decode(data, channels):
  """Decodes an image file.

  The orientation that cameras store as metadata is applied, palettes are
  resolved, and of an animation the first frame is taken. To get `channels`,
  grey is repeated, color becomes its luma (ITU-R 601-2), and what is
  transparent becomes white, or, with 4 channels, stays so. 16 bits become 8:
  round(x / 257), or of color the upper 8. Floats must be in [0, 1]:
  round(255 x).

  Args:
    data: bytes of a file of a format that Pillow knows.
    channels: 1 (grey), 3 (RGB), 4 (RGBA) or None for the file's own number.

  Returns:
    uint8 [H, W, channels].

  Raises:
    BrokenImage: it cannot be decoded.
  """
  if not data:
    raise BrokenImage('the file is empty')
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      image = _to_8_bits(ImageOps.exif_transpose(image))
  except Image.DecompressionBombError as e:
    most = 2 * Image.MAX_IMAGE_PIXELS
    raise BrokenImage(f'it has more than {most:,} pixels') from e
  except _DAMAGE as e:
    text = reason(e).partition(' <_io.')[0]  # Pillow names the bytes' address.
    raise BrokenImage(text) from e
  image = _convert(image, MODES[channels or _own_channels(image)])
  return np.asarray(image).reshape(image.height, image.width, -1)


def is_plain(data, channels):
  """Whether TensorFlow decodes a file to the same pixels as `decode`.

  It does so on all cores, while Pillow holds Python's lock for much of its
  time. It knows JPEG and PNG files of 8 bits without transparency, and
  `decode_plain` the orientation of JPEG files.

  Args:
    data, channels: as of `decode`.

  Returns:
    The orientation that a camera stored, 1 to 8, for `decode_plain`; 0 for no.
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      grey = image.mode == 'L'
      if channels != 3 and not (grey and channels == 1):
        return 0
      if (not grey and image.mode != 'RGB') or _is_transparent(image):
        return 0
      if image.format == 'JPEG':
        if not image.info.keys() & {'exif', 'xmp'}:
          return 1
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in range(1, 9) else 0
      # Pillow finds a PNG file's orientation in several places, not all of them
      # in its beginning.
      said = any(mark in data for mark in _PNG_METADATA)
      return int(image.format == 'PNG' and not said)
  except _DAMAGE:
    return 0  # `decode` says why.


def decode_plain(data, orientation, channels):
  """`decode` by TensorFlow's operations.

  Args:
    data: scalar string tensor.
    orientation: scalar integer tensor, what `is_plain` said.
    channels: as of `decode`, 1, 3 or 4.

  Returns:
    uint8 [H, W, channels].
  """
  # This operation takes PNG, too.
  image = tf.io.decode_jpeg(
      data, channels=channels, dct_method='INTEGER_ACCURATE'
  )

  def turned():
    # EXIF 2.32, tag 0x0112: where the first row and column are.
    swapped = tf.cond(
        orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image
    )
    down = tf.reduce_any(orientation == [3, 4, 7, 8])
    right = tf.reduce_any(orientation == [2, 3, 6, 7])
    # A slice with steps of -1 takes five times as long.
    return tf.raw_ops.Reverse(tensor=swapped, dims=[down, right, False])

  return tf.cond(orientation <= 1, lambda: image, turned)


def encode(image, kind, **how):
  """Encodes an image file.

  Args:
    image: uint8 [H, W, C].
    kind: 'png' or 'jpeg'.
    **how: Pillow's options of the format.

  Returns:
    Bytes.
  """
  buffer = io.BytesIO()
  image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  image.save(buffer, kind, **how)
  return buffer.getvalue()


def to_png(image):
  """Bytes of a PNG file, not compressed, of an image uint8 [H, W, C]."""
  return encode(image, 'png', compress_level=0)


def _to_8_bits(image):
  """An image of a mode with 8 bits per channel."""
  if not image.mode.startswith(('I', 'F')):
    return image
  values = np.asarray(image).astype(np.float64)
  if image.mode == 'F':
    what, top = 'floats', 1.0
  else:
    what, top = 'integers', 65535.0
  # A NaN is neither.
  if not (values.min() >= 0 and values.max() <= top):
    raise BrokenImage(
        f'its {what} are from {values.min():g} to {values.max():g}, expected 0'
        f' to {top:g}'
    )
  return Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))


def _is_transparent(image):
  modes = ('RGBA', 'LA', 'PA', 'La', 'RGBa')
  return image.mode in modes or 'transparency' in image.info


def _own_channels(image):
  if _is_transparent(image):
    return 4
  return 1 if image.mode in ('1', 'L') else 3


def _convert(image, mode):
  if _is_transparent(image):
    image = image.convert('RGBA')
    if mode != 'RGBA':
      white = Image.new('RGBA', image.size, 'white')
      image = Image.alpha_composite(white, image).convert('RGB')
  elif image.mode == 'P':
    image = image.convert('RGB')
  return image.convert(mode)
