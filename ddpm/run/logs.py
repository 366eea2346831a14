"""Numbers and pictures, to people: metrics.jsonl, TensorBoard, the terminal."""

import json
import os
import sys
import time

from absl import logging
import tensorflow as tf
import tqdm

from ddpm.runtime import files
from ddpm.runtime import png
from ddpm.runtime.errors import writing


class Writers:
  """All places that a run reports to.

  Args:
    workdir: the run's folder.
    first_step: step that the run starts at; later ones in the log of an
      earlier start are dropped, since they are done again.
    num_steps: step that the run ends at.
    writes: whether this process reports at all.
  """

  def __init__(self, workdir, *, first_step, num_steps, writes):
    self._sinks = []
    if writes:
      self._sinks = [
          _JsonLines(os.path.join(workdir, 'metrics.jsonl'), first_step),
          TensorBoard(os.path.join(workdir, 'tensorboard')),
          _Bar(first_step, num_steps) if sys.stderr.isatty() else _Lines(),
      ]

  def scalars(self, step, metrics):
    """Reports a dict of numbers."""
    for sink in self._sinks:
      sink.scalars(step, metrics)

  def progress(self, step):
    """Reports that a step is done, without numbers."""
    for sink in self._sinks:
      sink.progress(step)

  def images(self, step, path, draw):
    """Reports images as a grid, also written to a path, and what they cost.

    Args:
      step: steps done.
      path: of a PNG file.
      draw: function () -> uint8 [N, H, W, C], or None for no images. Not
        called where this process does not report.
    """
    started = time.monotonic()
    images = draw() if self._sinks else None
    if images is None:
      return
    seconds = time.monotonic() - started
    for sink in self._sinks:
      sink.images(step, images, seconds)
    png.write_png(path, png.grid(images))

  def close(self):
    for sink in self._sinks:
      sink.close()


class _JsonLines:
  """One JSON object a line. Floats are written so that they read back equal."""

  def __init__(self, path, first_step):
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path) as f:
        lines = f.read().splitlines(keepends=True)
      files.write_file(path, ''.join(_up_to(lines, first_step)).encode())
    self._path = path
    self._file = tf.io.gfile.GFile(path, 'a')

  def scalars(self, step, metrics):
    with writing(self._path):
      self._file.write(json.dumps({'step': step, **metrics}) + '\n')
      self._file.flush()

  def progress(self, step):
    pass

  def images(self, step, images, seconds):
    pass

  def close(self):
    self._file.close()


def _up_to(lines, last_step):
  """The whole lines of a log whose step is at most last_step."""
  for line in lines:
    try:
      step = json.loads(line)['step']
    except ValueError:  # A line that a crash cut short is the last one.
      return
    if step <= last_step and line.endswith('\n'):
      yield line


class TensorBoard:
  """Summaries. `tf.summary.scalar` and `image` need TensorBoard to write what
  they write; only who looks at it should need it."""

  def __init__(self, directory):
    self._writer = tf.summary.create_file_writer(directory)

  def scalars(self, step, metrics):
    with self._writer.as_default(step=step):
      for name, value in metrics.items():
        value = tf.constant(value, tf.float32)
        tf.summary.write(name, value, metadata=_metadata('scalars', 'SCALAR'))

  def progress(self, step):
    pass

  def images(self, step, images, seconds):
    self.scalars(step, {'sample_seconds': seconds})
    picture = png.grid(images)
    height, width = [str(n).encode() for n in picture.shape[:2]]
    value = tf.stack([width, height, tf.io.encode_png(picture)])
    metadata = _metadata('images', 'BLOB_SEQUENCE')
    with self._writer.as_default(step=step):
      tf.summary.write('samples', value, metadata=metadata)
    self._writer.flush()

  def close(self):
    self._writer.close()


def _metadata(plugin, data_class):
  """What tells TensorBoard which of its plugins shows a tensor."""
  metadata = tf.compat.v1.SummaryMetadata()
  metadata.plugin_data.plugin_name = plugin
  data_classes = type(metadata).DESCRIPTOR.fields_by_name['data_class']
  values = data_classes.enum_type.values_by_name
  metadata.data_class = values[f'DATA_CLASS_{data_class}'].number
  return metadata


class _Bar:
  """A progress bar, for a terminal."""

  def __init__(self, first_step, num_steps):
    self._bar = tqdm.tqdm(
        total=num_steps, initial=first_step, unit='step', dynamic_ncols=True
    )

  def scalars(self, step, metrics):
    self._bar.set_postfix(
        loss=f'{metrics["loss"]:.4f}',
        img_s=f'{metrics["images_per_second"]:.0f}',
        refresh=False,
    )

  def progress(self, step):
    self._bar.update(step - self._bar.n)

  def images(self, step, images, seconds):
    pass

  def close(self):
    self._bar.close()


class _Lines:
  """Plain lines, for a log."""

  def scalars(self, step, metrics):
    logging.info(
        'step %d  loss %.4f  %.1f images/s',
        step, metrics['loss'], metrics['images_per_second'],
    )  # fmt: skip

  def progress(self, step):
    pass

  def images(self, step, images, seconds):
    logging.info(
        'step %d  drew %d images in %.1f s', step, len(images), seconds
    )

  def close(self):
    pass
