"""Data sets of tensorflow-datasets."""

import socket
import urllib.request

import tensorflow as tf
import tensorflow_datasets as tfds

from ddpm.data import resize as resize_lib
from ddpm.data import store
from ddpm.runtime import files
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

_BLOCK = 256


def load(
    name, *, data_dir, split, image_size, resize, image_key, label_key
):
  """Loads a data set, downloading it if it is missing.

  Args:
    name: name in tensorflow-datasets, such as 'mnist' or 'cifar10'.
    data_dir: folder of prepared data sets.
    split: in TFDS notation.
    image_size: (height, width) to bring the images to, in pixels.
    resize: one of `resize.RULES`.
    image_key: name of the feature that is the image. 16 bits become 8:
      round(x / 257). Floats must be in [0, 1]: round(255 x).
    label_key: name of the feature that is the class; 'label' may be missing.

  Returns:
    `store.Stored`, number of classes (0 without labels).

  Raises:
    UserError: the name or split is unknown, or the data set cannot be
      downloaded or read, or has no images.
  """
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as e:
    raise UserError(
        f'tensorflow-datasets has no data set {name!r}'
    ) from e
  if not builder.is_prepared():
    _prepare(builder, name, data_dir)
  features = builder.info.features
  channels = _channels(name, features, image_key)
  num_classes = _num_classes(name, features, label_key)
  try:
    instructions = builder.info.splits[split].file_instructions
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError) as e:
    splits = ', '.join(builder.info.splits)
    raise UserError(
        f'data set {name!r} has no split {split!r}, it has: {splits}'
    ) from e
  if not count:
    raise UserError(f'the split {split!r} of data set {name!r} has no images')

  def example(features):
    image = _to_8_bits(features[image_key])
    image = resize_lib.fit(image, *image_size, resize)
    return image, features[label_key] if num_classes else 0

  def make():
    try:
      dataset = builder.as_dataset(split=split, shuffle_files=False)
      dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
      for block in dataset.batch(_BLOCK).prefetch(2).as_numpy_iterator():
        yield *block, 0
    except (tf.errors.OpError, AssertionError) as e:
      raise UserError(
          f'data set {name!r} in {data_dir} cannot be read: {reason(e)}'
      ) from e

  parts = [
      f'{f.filename} {f.skip} {f.take} {files.stamp(f.filename)}'
      for f in instructions
  ]
  return store.keep(
      ['tfds', builder.info.full_name, image_key, label_key, resize, *parts],
      make,
      name=f'tfds:{name}',
      count=count,
      shape=(*image_size, channels),
  ), num_classes


def _channels(name, features, key):
  """Channels of the images."""
  if key not in features:
    others = ', '.join(features)
    raise UserError(
        f'data set {name!r} has no {key!r}, it has: {others}; set'
        ' data.image_key to one that is an image'
    )
  shape = features[key].shape
  if len(shape or ()) != 3 or shape[-1] not in (1, 3, 4):
    raise UserError(
        f'{key!r} of data set {name!r} has the shape {shape}, expected images'
        ' [height, width, 1, 3 or 4]: set data.image_key to another'
    )
  return shape[-1]


def _num_classes(name, features, key):
  """Number of classes, 0 without labels."""
  if key not in features:
    if key == 'label':
      return 0
    others = ', '.join(features)
    raise UserError(
        f'data set {name!r} has no {key!r}, it has: {others}; set'
        ' data.label_key to one that is a class'
    )
  return getattr(features[key], 'num_classes', None) or 0


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


def _prepare(builder, name, data_dir):
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
    builder.download_and_prepare()
  except Exception as e:  # Data set scripts may raise anything.
    raise UserError(f'{where}, and preparing it failed: {reason(e)}') from e
