"""Sets of images to train on.

A source has

  shape: (H, W, C) of its images;
  num_classes: 0 if its images have no classes;
  digest: hash that changes with its images and labels;
  len(source): the number of its images, N;
  gather(indices): images uint8 [n, H, W, C] for int64 [n];
  labels_of(indices): labels int32 [n], -1 for an image without a class;
  with_classes(num_classes, unlabelled): a source of the same images, with
    `checked_labels`;
  read(dataset, remote): a `tf.data.Dataset` of dicts with index int64 [K, b]
    becomes one with image uint8 [K, b, H, W, C] and label int32 [K, b] in its
    place. `remote`: it runs on hosts of a TPU slice, which have no Python;
  reading(): a context that turns errors of `read` into a UserError.

`Images` are in memory, or mapped from a file; `records.Records` are read from
files when they are needed.
"""

import contextlib
import dataclasses
import functools
import hashlib

import numpy as np
import tensorflow as tf

from ddpm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Images:
  """Images in memory, or mapped from a file.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: int32 [N]; all 0 without classes; -1 for an image without one.
    num_classes: 0 if the images have no classes.
    known_digest: None to compute the hash when it is needed.
    name: of the data set, for messages.
    file: path of the images' pixels, and nothing else; None if there is none.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int
  known_digest: str | None = None
  name: str = 'the data set'
  file: str | None = None

  def __len__(self):
    return len(self.images)

  @property
  def shape(self):
    return self.images.shape[1:]

  @functools.cached_property
  def digest(self):
    if self.known_digest:
      return self.known_digest
    digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
    digest.update(np.ascontiguousarray(self.labels).data)
    return digest.hexdigest()

  def gather(self, indices):
    return self.images[indices]

  def labels_of(self, indices):
    return self.labels[indices]

  def with_classes(self, num_classes, unlabelled):
    labels = checked_labels(
        self.labels, np.arange(len(self)), name=self.name,
        num_classes=num_classes, unlabelled=unlabelled,
    )  # fmt: skip
    return dataclasses.replace(self, labels=labels)

  def read(self, dataset, remote=False):
    by_file = remote and self.file
    images = None if by_file else _as_tensor(self.images)
    labels = tf.constant(self.labels)

    def gather(element):
      index = element.pop('index')
      return element | {
          'image': tf.gather(self._map_file() if by_file else images, index),
          'label': tf.gather(labels, index),
      }

    return dataset.map(gather)

  def _map_file(self):
    """The images, on any host that finds their file.

    As a constant of the graph they would pass through the network, which a set
    of over 2 GiB cannot.
    """
    return tf.raw_ops.ImmutableConst(
        dtype=tf.uint8,
        shape=self.images.shape,
        memory_region_name=self.file,
    )

  @contextlib.contextmanager
  def reading(self):
    try:
      yield
    except tf.errors.NotFoundError as e:
      raise UserError(
          f'{self.file} is not on every host of the TPU slice: set'
          ' XDG_CACHE_HOME to a folder that they share'
      ) from e


def checked_labels(labels, numbers, *, name, num_classes, unlabelled):
  """Labels as a model with classes is trained on.

  Args:
    labels: int32 [n].
    numbers: [n], of their images in the data set.
    name: of the data set.
    num_classes: of the model.
    unlabelled: 'null' to give images without a class, -1, the null class,
      num_classes; or 'refuse'.

  Returns:
    int32 [n].

  Raises:
    UserError: a label is out of range.
  """
  most = num_classes - 1
  if unlabelled == 'null':
    most = num_classes
    labels = np.where(labels == -1, num_classes, labels).astype(np.int32)
  wrong = (labels < 0) | (labels > most)
  if wrong.any():
    i = int(wrong.argmax())
    raise UserError(
        f'{wrong.sum():,} of {len(labels):,} images of {name} have no class,'
        f' such as number {numbers[i]}, whose label is {labels[i]}, expected 0'
        f' to {num_classes - 1}: use another split, or data.unlabelled=null'
        ' with train.label_dropout'
    )
  return labels


def _as_tensor(array):
  """A tensor on the host, which shares the array's memory if it can.

  TensorFlow crashes on memory that is not aligned to 64 bytes. Mapped files are
  aligned.
  """
  if array.ctypes.data % 64 or not array.flags.carray:
    return tf.constant(array)
  return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
