"""A folder of image files."""

import collections
import dataclasses
import hashlib
import itertools
import os

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.data import decode
from ddpm.data import resize
from ddpm.runtime import cores
from ddpm.runtime import files
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

EXTENSIONS = (
    '.png', '.jpg', '.jpeg', '.jfif', '.webp', '.bmp', '.gif', '.tif', '.tiff',
)  # fmt: skip

LABELS = ('folders', 'prefix', 'none')

# That are suggested.
SIZES = (32, 64, 128, 256)

# Images that a suggestion is based on.
_SAMPLE = 64

# Images that are decoded before any of them is passed on.
_BLOCK = 256

# Files that are read by one call, and calls at once. All of them are in memory,
# and may be large.
_READ, _READS = 8, 4


@dataclasses.dataclass(frozen=True)
class Listing:
  """The image files in a folder and its sub-folders, and their classes.

  Attributes:
    root: the folder.
    names: paths relative to it, in the order of their bytes.
    classes: names of the classes, in order; empty without labels.
    labels: int32 [N]; all 0 without labels.
    identity: string that changes with the files, but not with the root.
  """

  root: str
  names: list
  classes: list
  labels: np.ndarray
  identity: str

  def path(self, i):
    return os.path.join(self.root, self.names[i])


def list_images(root, labels='folders'):
  """Lists the image files of a folder, without opening them.

  Hidden files and folders are left out, among them macOS' `._x.png`, and, with
  a warning, files that do not end in EXTENSIONS. Links are followed.

  Args:
    root: the folder, local or in a bucket.
    labels: 'folders': a class per sub-folder that directly or below holds
      images, if all images are in one; 'prefix': a class per file name up to
      the first underscore; 'none'.

  Returns:
    `Listing`.

  Raises:
    UserError: it is no folder, or has no images.
  """
  in_bucket = files.is_in_bucket(root)
  if not (tf.io.gfile.isdir if in_bucket else os.path.isdir)(root):
    raise UserError(f'{shown(root)} is not a folder')
  names = sorted(_walk(root), key=os.fsencode)
  found = [name for name in names if name.lower().endswith(EXTENSIONS)]
  if not found:
    raise UserError(
        f'{shown(root)} has no images: expected files that end in'
        f' {", ".join(EXTENSIONS)}'
    )
  if len(found) < len(names):
    _say_left_out(root, sorted(set(names) - set(found)))
  classes, numbers = _classes(found, labels)
  digest = hashlib.sha256()
  for name in found:
    stamp = files.stamp(os.path.join(root, name))
    digest.update(os.fsencode(name) + f' {stamp}\n'.encode())
  return Listing(root, found, classes, numbers, digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """What to train a folder's images as.

  Attributes:
    images: their number.
    image_size: in pixels.
    channels: 1 if none has color, else 3.
    num_classes: 0 without labels.
  """

  images: int
  image_size: int
  channels: int
  num_classes: int


def suggest(listing):
  """Looks at up to 64 images of a listing, evenly chosen.

  The size is the largest of 32, 64, 128 and 256 that half of them have at
  least, on their shorter side. Broken images do not count; if all of these are
  broken, the first that is not does.

  Returns:
    `Suggestion`.

  Raises:
    UserError: none can be decoded.
  """
  count = len(listing.names)
  chosen = dict.fromkeys(np.linspace(0, count - 1, _SAMPLE, dtype=int).tolist())
  rest = (i for i in range(count) if i not in chosen)
  sides, color, broken = [], False, None
  for i in itertools.chain(chosen, rest):
    if sides and i not in chosen:
      break
    try:
      image = read(listing.path(i), 3)
    except decode.BrokenImage as e:
      broken = broken or f'{shown(listing.path(i))}: {e}'
      continue
    sides.append(min(image.shape[:2]))
    color = color or bool((image != image[..., :1]).any())
  if not sides:
    raise UserError(f'no image can be decoded, the first is {broken}')
  return Suggestion(
      images=count,
      image_size=size_for(np.median(sides)),
      channels=3 if color else 1,
      num_classes=len(listing.classes),
  )


def size_for(side):
  """The largest of SIZES that images of a shorter side have, or the least."""
  return max((size for size in SIZES if size <= side), default=SIZES[0])


def _say_left_out(root, names):
  """Warns of files that are not read, by their endings."""
  endings = collections.Counter(
      os.path.splitext(name)[1].lower() or 'without an ending'
      for name in names
  )
  parts = [f'{n} {shown(ending)}' for ending, n in endings.most_common(5)]
  if len(endings) > len(parts):
    parts.append('others')
  logging.warning('%s: leaving out %s', shown(root), ', '.join(parts))


def _walk(root):
  """Paths of files that are not hidden, relative to a folder."""
  if files.is_in_bucket(root):
    for folder, _, names in tf.io.gfile.walk(root):
      below = folder[len(root) :].strip('/')
      yield from (os.path.join(below, n) for n in names if _is_visible(n))
    return
  # Names may be in any encoding, which `tf.io.gfile` does not allow.
  seen = set()
  for folder, folders, names in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:  # A link to a folder above.
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [f for f in folders if not f.startswith(('.', '__MACOSX'))]
    below = os.path.relpath(folder, root)
    for name in filter(_is_visible, names):
      yield os.path.normpath(os.path.join(below, name))


def _is_visible(name):
  return not name.startswith('.')


def _classes(names, labels):
  """Names of the classes, and the number of each image's."""
  if labels == 'folders':
    found = [name.partition('/')[0] if '/' in name else None for name in names]
    if None in found:
      found = []
  elif labels == 'prefix':
    found = [os.path.basename(name).partition('_')[0] for name in names]
  else:
    found = []
  classes = sorted(set(found), key=os.fsencode)
  if len(classes) < 2:  # One sub-folder for all is no class.
    return [], np.zeros(len(names), np.int32)
  numbers = {name: i for i, name in enumerate(classes)}
  return classes, np.array([numbers[name] for name in found], np.int32)


def read_bytes(path):
  """Reads a file, local or in a bucket. Raises BrokenImage if it cannot."""
  try:
    if files.is_in_bucket(path):
      with tf.io.gfile.GFile(path, 'rb') as f:
        return f.read()
    with open(path, 'rb') as f:
      return f.read()
  except (OSError, tf.errors.OpError) as e:
    raise decode.BrokenImage(reason(e)) from e


def read(path, channels):
  """Decodes an image file.

  Args:
    path: the file's path, local or in a bucket.
    channels: see `decode.decode`.

  Returns:
    uint8 [H, W, channels].

  Raises:
    BrokenImage: it cannot be read or decoded.
  """
  return decode.decode(read_bytes(path), channels)


def blocks(listing, *, size, channels, rule, on_error):
  """Decodes and resizes all images, on all cores.

  Args:
    listing: `Listing`.
    size: height and width of the images.
    channels: of the images.
    rule: see `resize.fit`.
    on_error: 'stop', or 'skip' to leave out broken images.

  Yields:
    Images uint8 [n, H, W, C], their numbers in the listing, and the number of
    broken ones that were left out.

  Raises:
    UserError: an image is broken, and on_error is 'stop'.
  """

  count, first = len(listing.names), 0
  while first < count:
    try:
      for part in _examples(listing, range(first, count), size, channels, rule):
        yield _whole(listing, first, *part, on_error)
        first += len(part[0])
    except tf.errors.InvalidArgumentError:
      # TensorFlow cannot read one of the next: perhaps Pillow can.
      block = range(first, min(first + _BLOCK, count))
      examples = _examples(
          listing, block, size, channels, rule, by_pillow=True
      )
      yield _whole(listing, first, *next(examples), on_error)
      first = block.stop


def _examples(listing, numbers, size, channels, rule, *, by_pillow=False):
  """Yields blocks of images, and what is wrong with each: '' if nothing."""

  def load(numbers):
    """Files that TensorFlow decodes, their orientations, what is wrong."""
    found = [
        _load(listing.path(number), channels, by_pillow) for number in numbers
    ]
    data, orientations, broken = zip(*found)
    return (
        np.array(data, object),
        np.array(orientations),
        np.array(broken, object),
    )

  def example(data, orientation, broken):
    image = decode.decode_plain(data, orientation, channels)
    image.set_shape([None, None, channels])
    return resize.fit(image, *size, rule), broken

  def read(numbers):
    types = [tf.string, tf.int64, tf.string]
    # Several files at once, as each call of Python has its price.
    parts = tf.numpy_function(load, [numbers], types, stateful=False)
    return tuple(tf.ensure_shape(part, [None]) for part in parts)

  # More than cores: large images take longer than others.
  calls = 2 * cores.count()
  yield from (
      tf.data.Dataset.range(numbers.start, numbers.stop)
      .batch(_READ)
      .map(read, num_parallel_calls=_READS, deterministic=True)
      .unbatch()
      .map(example, num_parallel_calls=calls, deterministic=True)
      .batch(_BLOCK)
      .prefetch(1)
      .as_numpy_iterator()
  )


def _load(path, channels, by_pillow):
  """A file as TensorFlow decodes it, its orientation, and what is wrong."""
  try:
    data = read_bytes(path)
    orientation = 0 if by_pillow else decode.is_plain(data, channels)
    if not orientation:
      data, orientation = decode.to_png(decode.decode(data, channels)), 1
    return data, orientation, ''
  except decode.BrokenImage as e:
    return decode.to_png(np.zeros([1, 1, channels], np.uint8)), 1, str(e)


def _whole(listing, first, images, broken, on_error):
  """A block as `blocks` yields it; `first` is the number of its first image."""
  whole = np.array([not text for text in broken])
  if on_error == 'stop' and not whole.all():
    i = int(whole.argmin())
    root = shown(listing.root)
    raise UserError(
        f'{shown(listing.path(first + i))} is broken: {broken[i].decode()};'
        f' python -m ddpm.data check --data=folder:{root} names all such files,'
        ' data.on_error=skip leaves them out'
    )
  return images[whole], first + np.flatnonzero(whole), int(np.sum(~whole))


def shown(path):
  """A path as it can be printed, whatever its encoding."""
  return os.fsencode(path).decode(errors='replace')
