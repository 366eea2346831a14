"""What a run shows in TensorBoard.

`tf.summary.scalar`, `image` and `text`, and TensorBoard's own writer of
hyper-parameters, need the package tensorboard to write. Here only viewing
needs it: what they would add to a tensor are a few bytes of metadata.
"""

import os
import re
import struct

from google.protobuf import struct_pb2
import tensorflow as tf

from ddpm.run import config as config_lib
from ddpm.runtime import files
from ddpm.runtime import png
from ddpm.runtime.errors import reading


class TensorBoard:
  """Summaries in a folder.

  Args:
    directory: the folder, local or in a bucket.
    first_step: step that the run starts at. Later ones of an earlier start are
      dropped: they are done again. None to drop nothing.

  Raises:
    UserError: events of an earlier start cannot be read or written.
  """

  def __init__(self, directory, first_step=None):
    self._directory = directory
    if first_step is not None:
      _forget_after(directory, first_step)
    self._writer = self._new_writer()

  def _new_writer(self):
    if not files.is_in_bucket(self._directory):
      return tf.summary.create_file_writer(self._directory)
    # Writes at `upload` only.
    return tf.summary.create_file_writer(
        self._directory, max_queue=2**31 - 1, flush_millis=2**31 - 1
    )

  def config(self, step, config):
    """Shows a config, as text and as hyper-parameters to compare runs by.

    Args:
      step: the first one that it holds for.
      config: of the run.
    """
    fields = config_lib.flatten(config)
    lines = [f'    {name}: {value!r}\n' for name, value in fields.items()]
    with self._writer.as_default(step=step):
      tf.summary.write(
          'config', ''.join(lines), metadata=_metadata('text', 'TENSOR')
      )
      tf.summary.write(
          '_hparams_/session_start_info', tf.zeros([0]),
          metadata=_metadata('hparams', 'TENSOR', _hyperparameters(fields)),
      )  # fmt: skip

  def scalars(self, step, metrics):
    with self._writer.as_default(step=step):
      for name, value in metrics.items():
        value = tf.constant(value, tf.float32)
        tf.summary.write(name, value, metadata=_metadata('scalars', 'SCALAR'))

  def images(self, step, images, seconds):
    self.scalars(step, {'sample_seconds': seconds})
    picture = png.grid(images)
    height, width = [str(n).encode() for n in picture.shape[:2]]
    value = tf.stack([width, height, tf.io.encode_png(picture)])
    metadata = _metadata('images', 'BLOB_SEQUENCE')
    with self._writer.as_default(step=step):
      tf.summary.write('samples', value, metadata=metadata)
    if not files.is_in_bucket(self._directory):
      self._writer.flush()

  def upload(self):
    """Returns the function that uploads what there is now, once.

    Flushing would upload the whole file again. So each upload is a file, which
    TensorBoard reads one after the other.
    """
    if not files.is_in_bucket(self._directory):
      return lambda: None
    writer, self._writer = self._writer, self._new_writer()
    return writer.close

  def close(self):
    self._writer.close()


def _forget_after(directory, step):
  """Drops what earlier starts wrote about steps after `step`."""
  paths = files.matching(directory, 'events.out.tfevents.*')
  for path in sorted(paths, key=_age, reverse=True):
    with reading(path), tf.io.gfile.GFile(path, 'rb') as f:
      data = f.read()
    end, last = _end_of(data, step)
    if end < len(data):
      files.write_file(path, data[:end])
    if last:  # The start that wrote this file has looked at those before it.
      return


def _age(path):
  """Sorts files of events: by the second, process and number in their names."""
  return [int(number) for number in re.findall(r'\d+', os.path.basename(path))]


def _end_of(data, step):
  """Where the events of steps up to `step` end, and the step of the last.

  A record is its length, uint64, and the length's checksum, uint32; the event;
  and the event's checksum, uint32. The steps do not fall.
  """
  end = last = 0
  while end + 12 <= len(data):
    (size,) = struct.unpack_from('<Q', data, end)
    after = end + 12 + size + 4
    if after > len(data):  # A kill cut it short.
      break
    event = tf.compat.v1.Event.FromString(data[end + 12 : after - 4])
    if event.step > step:
      break
    end, last = after, event.step
  return end, last


def _metadata(plugin, data_class, content=b''):
  """Tells TensorBoard which of its plugins shows a tensor."""
  metadata = tf.compat.v1.SummaryMetadata()
  metadata.plugin_data.plugin_name = plugin
  metadata.plugin_data.content = content
  data_classes = type(metadata).DESCRIPTOR.fields_by_name['data_class']
  values = data_classes.enum_type.values_by_name
  metadata.data_class = values[f'DATA_CLASS_{data_class}'].number
  return metadata


def _hyperparameters(fields):
  """A serialized HParamsPluginData of TensorBoard, of a config's fields.

  Its field 3 is a SessionStartInfo, whose field 1 is a map of names to values,
  as in google.protobuf.Struct, which comes with TensorFlow.
  """
  values = struct_pb2.Struct()
  for name, value in fields.items():
    plain = isinstance(value, (bool, int, float, str))
    values[name] = value if plain else str(value)
  info = values.SerializeToString(deterministic=True)
  # The field's number and type (bytes), and its length as a varint.
  header, size = bytearray([3 << 3 | 2]), len(info)
  while size >= 0x80:
    header.append(size & 0x7F | 0x80)
    size >>= 7
  return bytes([*header, size]) + info
