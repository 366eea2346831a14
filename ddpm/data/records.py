"""Images that are read from ArrayRecord files when they are needed.

For sets that do not fit in memory. A batch's records are found by their
numbers, in any order. The order of the images and their pixels are those of the
same set in memory.
"""

from concurrent import futures
import contextlib
import copy

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np
import tensorflow as tf

from ddpm.data import source
from ddpm.runtime import cores
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# Blocks of steps whose records are fetched at once.
_FETCHES = 2

# Images that are decoded before any of them is passed on.
_BLOCK = 256

# Files that are opened at once, to see that they are whole.
_OPENED = 64


class Records:
  """A source, see `source`, of records in ArrayRecord files.

  Args:
    name: of the data set, for messages.
    instructions: what to read: list of TFDS' `FileInstruction`.
    decode: function: a record, scalar string tensor -> (image uint8 [H, W, C],
      label int32 []), of TensorFlow's operations.
    shape: (H, W, C).
    num_classes: 0 if the images have no classes.
    digest: hash that changes with the files.

  Raises:
    UserError: a file is missing or not whole.
  """

  def __init__(
      self, name, instructions, decode, *, shape, num_classes, digest
  ):
    self.name = name
    self.shape = tuple(shape)
    self.num_classes = num_classes
    self.digest = digest
    self._instructions = instructions
    self._decode = decode
    # Function: labels int32 [n], numbers of their images int64 [n] -> labels to
    # train on. Set by `with_classes`.
    self._check_labels = None
    self._records = array_record_data_source.ArrayRecordDataSource(instructions)
    self._ends = np.cumsum([i.take for i in instructions])
    signature = [tf.TensorSpec([], tf.string)]
    self._example = tf.function(decode, signature)
    # What the image needs is pruned from the graph.
    self._label = tf.function(lambda record: decode(record)[1], signature)
    # In `read`, what made TensorFlow's operation fail.
    self._failure = None
    with futures.ThreadPoolExecutor(_OPENED) as pool:
      list(pool.map(_check_is_whole, instructions))

  def __len__(self):
    return len(self._records)

  def gather(self, indices):
    return self._gather(indices)[0]

  def labels_of(self, indices):
    records = self._fetch(np.asarray(indices))
    with self.reading():
      return np.stack([self._label(record).numpy() for record in records])

  def blocks(self, numbers=None):
    """Yields images in order, in blocks.

    Args:
      numbers: range of them; None for all.

    Yields:
      Images uint8 [n, H, W, C], labels int32 [n], and 0: none is left out.
    """
    indices = np.arange(len(self)) if numbers is None else np.array(numbers)
    for first in range(0, len(indices), _BLOCK):
      yield *self._gather(indices[first : first + _BLOCK]), 0

  def _gather(self, indices):
    records = self._fetch(np.asarray(indices))
    pool = futures.ThreadPoolExecutor(cores.count())
    with self.reading(), pool:
      images, labels = zip(*pool.map(self._example, records))
    return np.stack(images), np.stack(labels)

  def with_classes(self, num_classes, unlabelled):
    """Labels are checked when they are read, not at once."""

    def check(labels, numbers):
      return source.checked_labels(
          labels, numbers, name=self.name, num_classes=num_classes,
          unlabelled=unlabelled,
      )  # fmt: skip

    other = copy.copy(self)
    other._check_labels = check
    return other

  def read(self, dataset, remote=False):
    if remote:
      raise UserError(
          f'{self.name} does not fit in memory, and is read by Python, which'
          ' the hosts of a TPU slice do not run: use one host, or a smaller'
          ' data.image_size'
      )
    steps, size = dataset.element_spec['index'].shape
    count = steps * size

    def fetch(element):
      index = tf.reshape(element['index'], [-1])
      record = tf.numpy_function(
          self._guarded(self._fetch), [index], tf.string, stateful=False
      )
      return tf.ensure_shape(record, [count])

    def join(element, example):
      image, label = example
      index = tf.reshape(element.pop('index'), [-1])
      if self._check_labels:
        check = self._guarded(self._check_labels)
        label = tf.numpy_function(check, [label, index], tf.int32)
      return element | {
          'image': tf.reshape(image, [steps, size, *self.shape]),
          'label': tf.reshape(label, [steps, size]),
      }

    examples = (
        dataset.map(fetch, num_parallel_calls=_FETCHES, deterministic=True)
        .unbatch()
        .map(
            self._decode, num_parallel_calls=cores.count(), deterministic=True
        )
        .batch(count, drop_remainder=True)
    )
    return tf.data.Dataset.zip(dataset, examples).map(join)

  @contextlib.contextmanager
  def reading(self):
    try:
      yield
    except tf.errors.OpError as e:
      if self._failure:
        raise self._failure from e
      raise UserError(f'{self.name} cannot be read: {reason(e)}') from e

  def _guarded(self, function):
    """A function whose UserError `reading` raises: TensorFlow has its text."""

    def guarded(*args):
      try:
        return function(*args)
      except UserError as e:
        self._failure = e
        raise

    return guarded

  def _fetch(self, indices):
    """Records by their numbers: an array of bytes."""
    try:
      records = self._records.__getitems__(indices.tolist())
    except (RuntimeError, OSError) as e:  # array_record raises RuntimeError.
      raise UserError(self._damage(indices) or f'{self.name}: {e}') from e
    return np.array(records, dtype=object)

  def _damage(self, indices):
    """A message that names the first record that cannot be read, if any."""
    for index in indices.tolist():
      try:
        _ = self._records[index]
      except (RuntimeError, OSError) as e:
        file = int(np.searchsorted(self._ends, index, 'right'))
        instruction = self._instructions[file]
        position = index - self._ends[file] + instruction.take
        return (
            f'{instruction.filename} is damaged at record'
            f' {instruction.skip + position}: {reason(e)}'
        )
    return None


def count(path):
  """Number of records in a file; 0 if it is missing or not whole."""
  reader = array_record_module.ArrayRecordReader(
      str(path), options='readahead_buffer_size:0'
  )
  found = reader.num_records()
  # It raises only now.
  with contextlib.suppress(RuntimeError):
    reader.close()
  return found


def _check_is_whole(instruction):
  path, expected = str(instruction.filename), instruction.examples_in_shard
  if (found := count(path)) != expected:
    raise UserError(
        f'{path} is not whole: {found:,} of {expected:,} records can be read'
    )
