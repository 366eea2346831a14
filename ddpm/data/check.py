"""What is in a folder of images, and what a training would make of it."""

import collections
from concurrent import futures
import hashlib
import io
import math
import os
import shlex
import typing

import numpy as np
from PIL import Image
from PIL import ImageOps

from ddpm.data import decode
from ddpm.data import folder
from ddpm.runtime import cores
from ddpm.runtime import png
from ddpm.runtime import progress
from ddpm.runtime import words

_BLOCK = 256

# Names that are listed of each kind of finding; the rest is counted.
_LISTED = 20

# Of the contact sheet: images, and the length of a tile's side in pixels.
_TILES, _TILE = 48, 128
_DARK = 0.25


class Facts(typing.NamedTuple):
  """What is known of an image file.

  Attributes:
    broken: why it cannot be decoded, or None; then the rest is as below.
    size: bytes of the file.
    digest: hash of the file.
    height, width: in pixels, the right way up.
    mode: Pillow's, such as 'RGB'; with the file format: 'JPEG RGB'.
    looks: difference hash: 64 bits, equal for images that look alike.
  """

  broken: str | None
  size: int
  digest: bytes
  height: int = 0
  width: int = 0
  mode: str = ''
  looks: bytes = b''


class Report(typing.NamedTuple):
  """What `check` found: lines for the user, and the broken files' names."""

  lines: list
  broken: list


def check(path, *, image_size, labels, rule, sheet):
  """Looks at every image of a folder, on all cores.

  Args:
    path: the folder.
    image_size: (height, width) to train at; None for the suggested one.
    labels: one of `folder.LABELS`.
    rule: one of `resize.RULES`.
    sheet: path of the contact sheet to write.

  Returns:
    `Report`.

  Raises:
    UserError: it is no folder, or has no images.
  """
  listing = folder.list_images(os.path.expanduser(path), labels)
  facts = list(_look_at_all(listing))
  names = listing.names
  broken = [i for i, f in enumerate(facts) if f.broken]
  good = [i for i, f in enumerate(facts) if not f.broken]
  lines = [
      f'{len(names):,} image files, {sum(f.size for f in facts) / 1e6:,.1f} MB'
  ]
  suggestion = None
  if good:
    suggestion = folder.suggest(listing)
    size = image_size or (suggestion.image_size,) * 2
    lines += _describe([facts[i] for i in good], size)
  lines += _describe_classes(listing)
  lines += _list('broken', [f'{names[i]}: {facts[i].broken}' for i in broken])
  same = _groups(facts, good, lambda f: f.digest)
  lines += _list('the same file', [_joined(names, group) for group in same])
  once = set(good) - {i for group in same for i in group[1:]}
  alike = _groups(facts, sorted(once), lambda f: f.looks)
  lines += _list('alike', [_joined(names, group) for group in alike])
  if good:
    settings = [f'--config=configs/folder.py:{path}']
    if size != (suggestion.image_size,) * 2:
      text = size[0] if size[0] == size[1] else str(size)
      settings.append(f'--config.data.image_size={text}')
    if labels != 'folders':
      settings.append(f'--config.data.labels={labels}')
      settings.append(f'--config.model.num_classes={len(listing.classes)}')
    if rule != 'center_crop':
      settings.append(f'--config.data.resize={rule}')
    if broken:
      settings.append('--config.data.on_error=skip')
    memory = len(good) * math.prod(size) * suggestion.channels
    lines += [
        f'training at {words.dimensions((*size, suggestion.channels))}:'
        f' {memory / 2**20:,.1f} MiB decoded; an epoch is'
        f' {-(-len(good) // 64):,} steps of 64 images',
        f'to train: python -m ddpm.main {shlex.join(settings)} --workdir=...',
    ]
    _write_sheet(sheet, listing, good, size, rule)
    lines.append(f'contact sheet: {sheet}')
  return Report(
      list(map(folder.shown, lines)), [names[i] for i in broken]
  )


def look_at(path):
  """Returns the `Facts` of a file."""
  try:
    data = folder.read_bytes(path)
  except decode.BrokenImage as e:
    return Facts(str(e), 0, b'')
  digest = hashlib.sha256(data).digest()
  try:
    pixels = decode.decode(data, 3)
  except decode.BrokenImage as e:
    return Facts(str(e), len(data), digest)
  with Image.open(io.BytesIO(data)) as file:
    mode = f'{file.format} {file.mode}'
  small = np.asarray(Image.fromarray(pixels).convert('L').resize((9, 8)), int)
  height, width, _ = pixels.shape
  # Kuhn, "Kind of like that" (2013): whether brightness grows to the right.
  looks = np.packbits(small[:, 1:] > small[:, :-1]).tobytes()
  # Flat images have no such differences: tell them apart by their brightness.
  looks += bytes([int(small.mean()) // 16])
  return Facts(None, len(data), digest, height, width, mode, looks)


def _look_at_all(listing):
  count = len(listing.names)
  shown = progress.Progress(
      count, unit='image', line='{done} of {total} images', name='checking'
  )
  with futures.ThreadPoolExecutor(cores.count()) as pool:
    # In parts: a pool takes all of its work at once.
    for first in range(0, count, _BLOCK):
      part = range(first, min(first + _BLOCK, count))
      for i, facts in zip(part, pool.map(look_at, map(listing.path, part))):
        yield facts
        shown.update(i + 1)
  shown.close()


def _describe(facts, size):
  sides = sorted((min(f.height, f.width), f.height, f.width) for f in facts)
  least, median, most = (
      words.dimensions(sides[i][:0:-1]) for i in (0, len(sides) // 2, -1)
  )
  number = len({(f.height, f.width) for f in facts})
  yield (
      f'sizes (width x height): {least} to {most}, median {median},'
      f' {number:,} different'
  )
  modes = collections.Counter(f.mode for f in facts).most_common()
  yield 'kinds: ' + ', '.join(f'{mode} {count:,}' for mode, count in modes)
  height, width = size
  if small := sum(h < height or w < width for _, h, w in sides):
    than = words.dimensions(size)
    yield f'smaller than {than}: {small:,}, which are enlarged'


def _describe_classes(listing):
  if not listing.classes:
    return ['classes: none']
  counts = np.bincount(listing.labels)
  shown = [f'{n} {c:,}' for n, c in zip(listing.classes, counts)][:_LISTED]
  more = len(listing.classes) - len(shown)
  text = ', '.join(shown) + f' and {more} more' * bool(more)
  return [f'classes: {len(listing.classes)}: {text}']


def _groups(facts, numbers, key):
  """Groups of at least two images with the same key."""
  groups = collections.defaultdict(list)
  for i in numbers:
    groups[key(facts[i])].append(i)
  return [group for group in groups.values() if len(group) > 1]


def _joined(names, group):
  return ', '.join(names[i] for i in group[:_LISTED])


def _list(title, findings):
  """Lines for findings, of which not all are shown."""
  if not findings:
    return [f'{title}: none']
  lines = [f'{title}: {len(findings):,}']
  lines += [f'  {finding}' for finding in findings[:_LISTED]]
  if len(findings) > _LISTED:
    lines.append(f'  and {len(findings) - _LISTED:,} more')
  return lines


def _write_sheet(path, listing, good, size, rule):
  """Writes some images, with what the crop cuts off dark."""
  chosen = [good[i] for i in np.linspace(0, len(good) - 1, _TILES, dtype=int)]
  tiles = [_tile(listing.path(i), size, rule) for i in dict.fromkeys(chosen)]
  png.write_png(path, png.grid(np.stack(tiles), columns=8))


def _tile(path, size, rule):
  image = Image.fromarray(folder.read(path, 3))
  if rule == 'stretch':
    image = image.resize((size[1], size[0]))
  image = np.asarray(ImageOps.contain(image, (_TILE, _TILE)))
  height, width, _ = image.shape
  if rule == 'center_crop':
    cut = min(height / size[0], width / size[1])
    cut_h, cut_w = round(size[0] * cut), round(size[1] * cut)
    top, left = (height - cut_h) // 2, (width - cut_w) // 2
    kept = np.zeros([height, width, 1], bool)
    kept[top : top + cut_h, left : left + cut_w] = True
    image = np.where(kept, image, (image * _DARK).astype(np.uint8))
  below, right = _TILE - height, _TILE - width
  return np.pad(image, [
      (below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0)
  ])  # fmt: skip
