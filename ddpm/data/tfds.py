"""Data sets of tensorflow-datasets, and such as `prepare` writes."""

import functools
import hashlib
import math
import os
import socket
import urllib.request

from absl import logging
import tensorflow as tf
import tensorflow_datasets as tfds

from ddpm.data import folder
from ddpm.data import records
from ddpm.data import resize as resize_lib
from ddpm.data import source
from ddpm.data import store
from ddpm.runtime import cache
from ddpm.runtime import files
from ddpm.runtime import memory
from ddpm.runtime.errors import reading
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

_BLOCK = 256

# Part of the memory that decoded images may take.
_IN_MEMORY = 1 / 2

_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD


def builder(name, data_dir, **how):
  """Finds a data set by its name, and downloads it if it is missing.

  Args:
    name: in tensorflow-datasets, such as 'mnist' or 'cifar10'.
    data_dir: folder of data sets.
    **how: arguments of TFDS' `DownloadConfig`.

  Returns:
    TFDS' builder, prepared.

  Raises:
    UserError: the name is unknown, or the data set cannot be downloaded.
  """
  found = _find(name, data_dir)
  if found.is_prepared():
    return found
  place = hashlib.sha256(os.path.realpath(data_dir).encode()).hexdigest()[:16]
  with store.one_at_a_time(
      os.path.join(cache.folder(), f'{name.replace("/", "-")}-{place}.lock'),
      f'another process prepares tfds:{name}: waiting for it',
  ):
    found = _find(name, data_dir)
    if not found.is_prepared():
      _prepare(found, name, data_dir, how)
    return found


def builder_of(data, data_dir, **how):
  """The builder of 'tfds:NAME', see `builder`, or 'prepared:PATH'."""
  scheme, _, rest = data.partition(':')
  if scheme == 'prepared':
    return builder_in(os.path.expanduser(rest))
  return builder(rest, os.path.expanduser(data_dir), **how)


def is_prepared(name, data_dir):
  """Whether a data set is there. Raises UserError if its name is unknown."""
  return _find(name, data_dir).is_prepared()


def _find(name, data_dir):
  try:
    return tfds.builder(name, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as e:
    raise UserError(
        f'tensorflow-datasets has no data set {name!r}'
    ) from e


def is_in(path):
  """Whether a folder has a data set."""
  return tf.io.gfile.exists(os.path.join(path, 'dataset_info.json'))


def builder_in(path):
  """The builder of the data set in a folder.

  Raises:
    UserError: there is none.
  """
  if not is_in(path):
    raise UserError(
        f'{path} is no prepared data set, which has a dataset_info.json:'
        ' python -m ddpm.data prepare makes one'
    )
  try:
    return tfds.builder_from_directory(path)
  except Exception as e:  # Whatever the files in it hold.
    raise UserError(f'{path} cannot be read: {reason(e)}') from e


def suggest(builder, name):
  """What to train the split train of a data set as, by its description.

  Returns:
    `folder.Suggestion`.

  Raises:
    UserError: it is no set of images, or has no such split.
  """
  height, width, channels = image_shape(builder, name, 'image')
  # Unknown if there are several.
  side = min(height or 0, width or 0)
  return folder.Suggestion(
      images=sum(file.take for file in _files(builder, name, 'train')),
      image_size=folder.size_for(side),
      channels=channels,
      num_classes=len(_class_names(name, builder.info.features, 'label')),
  )


class Split:
  """A split of a data set, as images of one size.

  Attributes:
    name: of the data set, for messages.
    files: what of which files it is: list of TFDS' `FileInstruction`.
    shape: (H, W, C) of the images.
    class_names: of its classes, possibly none.

  Args:
    builder: TFDS' builder, prepared.
    name: see above.
    split: in TFDS notation.
    image_size: (height, width) to bring the images to, in pixels.
    resize: one of `resize.RULES`.
    image_key: name of the feature that is the image. 16 bits become 8:
      round(x / 257). Floats must be in [0, 1]: round(255 x).
    label_key: name of the feature that is the class; 'label' may be missing.

  Raises:
    UserError: the split or a feature is unknown, or it has no images.
  """

  def __init__(
      self, builder, *, name, split, image_size, resize, image_key, label_key
  ):
    features = builder.info.features
    self.name = name
    channels = image_shape(builder, name, image_key)[-1]
    self.shape = (*image_size, channels)
    self.class_names = _class_names(name, features, label_key)
    self.files = _files(builder, name, split)
    self._builder = builder
    self._split = split
    self._resize = resize
    self._image_key = image_key
    self._label_key = label_key
    # For the cache: they change if a file does.
    self._stamps = [
        f'{f.filename} {f.skip} {f.take} {files.stamp(f.filename)}'
        for f in self.files
    ]

  def __len__(self):
    return sum(file.take for file in self.files)

  @functools.cached_property
  def digest(self):
    """Hash that changes with the files, but not with their folder or time.

    Hosts may have copies of their own.
    """
    lines = [self._image_key, self._label_key]
    for file in self.files:
      with reading(file.filename):
        size = tf.io.gfile.stat(file.filename).length
      name = os.path.basename(file.filename)
      lines.append(
          f'{name} {file.skip} {file.take} {file.examples_in_shard} {size}'
      )
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()

  @property
  def has_random_access(self):
    """Whether its records can be read by their numbers."""
    return self._builder.info.file_format == _ARRAY_RECORD

  @functools.cached_property
  def records(self):
    """The source of its records, if it has random access."""
    features = self._builder.info.features
    for file in self.files:
      if files.is_in_bucket(str(file.filename)):
        raise UserError(
            f'{self.name} is in ArrayRecord files, which are read from local or'
            ' mounted folders only: mount the bucket, by gcsfuse for example'
        )
    return records.Records(
        self.name,
        self.files,
        lambda record: self._example(features.deserialize_example(record)),
        shape=self.shape,
        num_classes=len(self.class_names),
        digest=self.digest,
    )

  def decoded(self):
    """The source of its images, decoded once and kept in the cache."""
    stored = store.keep(
        [
            'tfds', self._builder.info.full_name, self._image_key,
            self._label_key, self._resize, *self._stamps,
        ],
        self._blocks,
        name=self.name,
        count=len(self),
        shape=self.shape,
    )  # fmt: skip
    # The same as of `records`, where both can be had.
    digest = self.digest if self.has_random_access else stored.digest
    return source.Images(
        stored.images, stored.labels, len(self.class_names), digest, self.name,
        stored.file,
    )  # fmt: skip

  def _blocks(self):
    """All images, as `store.keep` takes them."""
    if self.has_random_access:
      yield from self.records.blocks()
      return
    dataset = self._builder.as_dataset(split=self._split, shuffle_files=False)
    yield from self._decode(dataset.map(self._example, tf.data.AUTOTUNE))

  def part(self, numbers):
    """Yields blocks of some images, in the order of the files.

    Args:
      numbers: range of them.

    Yields:
      As `records.Records.blocks`.
    """
    if self.has_random_access:
      yield from self.records.blocks(numbers)
      return
    features = self._builder.info.features
    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[
        self._builder.info.file_format
    ]
    first = 0
    for file in self.files:
      skip = max(numbers.start - first, 0)
      take = min(numbers.stop - first, file.take) - skip
      first += file.take
      if take <= 0:
        continue
      records_ = adapter.make_tf_data(file.filename)
      dataset = records_.skip(file.skip + skip).take(take)
      yield from self._decode(dataset.map(
          lambda r: self._example(features.deserialize_example(r)),
          tf.data.AUTOTUNE,
      ))  # fmt: skip

  def _decode(self, examples):
    try:
      blocks = examples.batch(_BLOCK).prefetch(2)
      for images, labels in blocks.as_numpy_iterator():
        yield images, labels, 0
    except (tf.errors.OpError, AssertionError) as e:
      raise UserError(f'{self.name} cannot be read: {reason(e)}') from e

  def _example(self, values):
    """Image and label of a record's features."""
    image = _to_8_bits(values[self._image_key])
    height, width, _ = self.shape
    image = resize_lib.fit(image, height, width, self._resize)
    label = values[self._label_key] if self.class_names else 0
    return image, tf.cast(label, tf.int32)


def load(builder, **settings):
  """Loads a data set.

  It is decoded once and kept in the cache. But if it is in ArrayRecord files,
  and would take more than half of the memory, its records are read when they
  are needed.

  Args:
    builder: TFDS' builder, prepared.
    **settings: arguments of `Split`.

  Returns:
    A source, see `source`.

  Raises:
    UserError: as `Split`, or the data cannot be read.
  """
  split = Split(builder, **settings)
  size = len(split) * math.prod(split.shape)
  if not split.has_random_access or size <= memory.total() * _IN_MEMORY:
    return split.decoded()
  logging.info(
      '%s: %s images, read from %d files as they are needed',
      split.name, f'{len(split):,}', len(split.files),
  )  # fmt: skip
  return split.records


def _files(builder, name, split):
  """What of which files is a split."""
  try:
    found = builder.info.splits[split].file_instructions
  except (KeyError, ValueError) as e:
    splits = ', '.join(builder.info.splits)
    raise UserError(f'{name} has no split {split!r}, it has: {splits}') from e
  if not sum(file.take for file in found):
    raise UserError(f'the split {split!r} of {name} has no images')
  return found


def image_shape(builder, name, key):
  """Shape of a data set's images; height and width may be None.

  Raises:
    UserError: the feature `key` is no image.
  """
  features = builder.info.features
  if key not in features:
    others = ', '.join(features)
    raise UserError(
        f'{name} has no {key!r}, it has: {others}; set'
        ' data.image_key to one that is an image'
    )
  shape = features[key].shape
  if len(shape or ()) != 3 or shape[-1] not in (1, 3, 4):
    raise UserError(
        f'{key!r} of {name} has the shape {shape}, expected images'
        ' [height, width, 1, 3 or 4]: set data.image_key to another'
    )
  return shape


def _class_names(name, features, key):
  """Names of the classes, none without labels."""
  if key not in features:
    if key == 'label':
      return []
    others = ', '.join(features)
    raise UserError(
        f'{name} has no {key!r}, it has: {others}; set'
        ' data.label_key to one that is a class'
    )
  return getattr(features[key], 'names', None) or []


def _to_8_bits(image):
  if image.dtype == tf.uint8:
    return image
  if image.dtype.is_integer:
    top, values = 65535, tf.cast(image, tf.float32)
  else:
    top, values = 1, tf.cast(image, tf.float32)
  checks = [
      tf.debugging.assert_non_negative(values, 'an image has negative values'),
      tf.debugging.assert_less_equal(
          values, float(top), f'an image has values beyond {top}'
      ),
  ]
  with tf.control_dependencies(checks):
    return tf.cast(tf.round(values * (255 / top)), tf.uint8)


def _prepare(builder, name, data_dir, how):
  where = f'data set {name!r} is not prepared in {data_dir}'
  # Without a network tensorflow-datasets retries for minutes, so check first.
  # Behind a proxy this check is not possible.
  try:
    if not urllib.request.getproxies():
      socket.create_connection(('storage.googleapis.com', 443), 5).close()
  except OSError as e:
    raise UserError(
        f'{where}, and there is no network to download it: set data_dir to a'
        f' folder that has it, or run tfds build {name} on a machine with a'
        ' network'
    ) from e
  try:
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(**how)
    )
  except Exception as e:  # Data set scripts may raise anything.
    raise UserError(f'{where}, and preparing it failed: {reason(e)}') from e
