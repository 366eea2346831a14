"""Data sets of tensorflow-datasets, loaded into memory as uint8."""

import os
import socket
import urllib.request

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# The largest share of the host's memory that images may take.
_MEMORY_SHARE = 0.5


def load(name, *, data_dir, split, image_size):
  """Loads a data set, downloading it if it is missing.

  Args:
    name: name in tensorflow-datasets, such as 'mnist' or 'cifar10'.
    data_dir: folder of prepared data sets.
    split: in TFDS notation.
    image_size: height and width to crop and resize to, in pixels.

  Returns:
    images uint8 [N, H, W, C], labels int32 [N], number of classes (0 without
    labels).

  Raises:
    UserError: the name or split is unknown, or the data set cannot be
      downloaded or read, has no images, or does not fit in memory.
  """
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as e:
    raise UserError(
        f'tensorflow-datasets has no data set {name!r}'
    ) from e
  if not builder.is_prepared():
    _prepare(builder, name, data_dir)
  if 'image' not in builder.info.features:
    raise UserError(f'data set {name!r} has no images')
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError) as e:
    splits = ', '.join(builder.info.splits)
    raise UserError(
        f'data set {name!r} has no split {split!r}, it has: {splits}'
    ) from e
  channels = builder.info.features['image'].shape[-1]
  _check_memory(name, count * image_size**2 * channels)

  features = builder.info.features
  num_classes = 0
  if 'label' in features:
    num_classes = getattr(features['label'], 'num_classes', 0)

  def example(features):
    image = _crop_and_resize(features['image'], image_size)
    return image, features['label'] if num_classes else 0

  images = np.empty([count, image_size, image_size, channels], np.uint8)
  labels = np.empty([count], np.int32)
  done = 0
  try:
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    for image, label in dataset.batch(256).prefetch(2).as_numpy_iterator():
      images[done : done + len(image)] = image
      labels[done : done + len(image)] = label
      done += len(image)
  except (tf.errors.OpError, AssertionError) as e:
    raise UserError(
        f'data set {name!r} in {data_dir} cannot be read: {reason(e)}'
    ) from e
  return images, labels, num_classes


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


def _check_memory(name, size):
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if size > _MEMORY_SHARE * total:
    raise UserError(
        f'data set {name!r} takes {size / 2**30:.1f} GiB of memory,'
        f' expected at most half of the {total / 2**30:.1f} GiB here: use a'
        ' part of it (split train[:10%]) or a smaller image size'
    )


def _crop_and_resize(image, size):
  """The central square of an image, as uint8 [size, size, C]."""
  shape = tf.shape(image)
  side = tf.minimum(shape[0], shape[1])
  image = tf.image.crop_to_bounding_box(
      image, (shape[0] - side) // 2, (shape[1] - side) // 2, side, side
  )

  def resize():
    resized = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

  image = tf.cond(side == size, lambda: image, resize)
  return tf.ensure_shape(image, [size, size, None])
