"""Reports of a run: metrics.jsonl, TensorBoard, the terminal.

Local files are written line by line. Buckets can only replace whole files, so
there the log is uploaded with every checkpoint.
"""

from concurrent import futures
import functools
import json
import os
import time

from absl import logging
import tensorflow as tf

from ddpm.run import board
from ddpm.runtime import files
from ddpm.runtime import png
from ddpm.runtime import progress
from ddpm.runtime import strict_json
from ddpm.runtime import words
from ddpm.runtime.errors import writing


class Writers:
  """All places that a run reports to.

  Args:
    workdir: the run's folder.
    config: of the run.
    first_step: step that the run starts at. Later ones in the log of an earlier
      start are dropped: they are done again.
    writes: whether this process reports.
  """

  def __init__(self, workdir, config, *, first_step, writes):
    self._sinks = self._files = []
    # One thread, so that uploads are done in order.
    self._thread = futures.ThreadPoolExecutor(1)
    self._pending = None
    if writes:
      self._terminal = _Terminal(
          first_step, config.train.num_steps, config.train.batch_size
      )
      tensorboard = board.TensorBoard(board_folder(workdir), first_step)
      tensorboard.config(first_step + 1, config)
      self._files = [
          _JsonLines(os.path.join(workdir, 'metrics.jsonl'), first_step),
          tensorboard,
      ]
      self._sinks = [*self._files, self._terminal]

  def estimate(self, step, images_per_second, hindrances):
    """Says how long training will take, and what makes it slow.

    Args:
      step: steps done.
      images_per_second: measured so far.
      hindrances: phrases, possibly none.
    """
    if self._sinks:
      self._terminal.estimate(step, images_per_second, hindrances)

  def scalars(self, step, metrics, *, saved=0):
    """Reports a dict of scalars.

    Args:
      step: steps done.
      metrics: the dict, with loss and images_per_second.
      saved: step of the last checkpoint; 0 for none.
    """
    for file in self._files:
      file.scalars(step, metrics)
    if self._sinks:
      self._terminal.scalars(step, metrics, saved)

  def images(self, step, draw, *paths):
    """Reports images as a grid, which is also written to some paths.

    Args:
      step: steps done.
      draw: function () -> uint8 [N, H, W, C], or None for no images. Not
        called if this process does not report.
      *paths: of PNG files.
    """
    started = time.monotonic()
    images = draw() if self._sinks else None
    if images is None:
      return
    seconds = time.monotonic() - started
    for sink in self._sinks:
      sink.images(step, images, seconds)
    for path in paths:
      png.write_png(path, png.grid(images))

  def upload(self):
    """Puts what was reported so far into a bucket, in the background.

    Raises:
      UserError: what was reported before could not be put there.
    """
    self._wait()
    uploads = [file.upload() for file in self._files]
    self._pending = self._thread.submit(lambda: [put() for put in uploads])

  def _wait(self):
    if self._pending is not None:
      self._pending.result()

  def close(self):
    self._wait()
    for sink in self._sinks:
      sink.close()


def board_folder(workdir):
  """The folder of a run that TensorBoard reads."""
  return os.path.join(workdir, 'tensorboard')


class _JsonLines:
  """One JSON object per line. Floats read back equal."""

  def __init__(self, path, first_step):
    self._path = path
    self._lines = []
    if tf.io.gfile.exists(path):
      with tf.io.gfile.GFile(path) as f:
        lines = f.read().splitlines(keepends=True)
      self._lines = list(_up_to(lines, first_step))
      self._put(self._lines)
    self._file = None
    if not files.is_in_bucket(path):
      self._file = tf.io.gfile.GFile(path, 'a')

  def scalars(self, step, metrics):
    line = strict_json.dumps({'step': step, **metrics}) + '\n'
    if self._file is None:
      self._lines.append(line)
      return
    with writing(self._path):
      self._file.write(line)
      self._file.flush()

  def images(self, step, images, seconds):
    pass

  def upload(self):
    """Returns the function that uploads what there is now."""
    if self._file is not None:
      return lambda: None
    return functools.partial(self._put, self._lines.copy())

  def _put(self, lines):
    files.write_file(self._path, ''.join(lines).encode())

  def close(self):
    if self._file is not None:
      self._file.close()
    else:
      self._put(self._lines)


def _up_to(lines, last_step):
  """The whole lines of a log whose step is at most last_step."""
  for line in lines:
    try:
      step = json.loads(line)['step']
    except ValueError:  # A crash cut the last line short.
      return
    if step <= last_step and line.endswith('\n'):
      yield line


class _Terminal:
  """A progress bar, or log lines if there is no terminal."""

  def __init__(self, first_step, num_steps, batch_size):
    self._num_steps, self._batch_size = num_steps, batch_size
    self._progress = progress.Progress(
        num_steps, unit='step', done=first_step, line='step {done}', notes=True
    )

  def estimate(self, step, images_per_second, hindrances):
    self._progress.update(step)
    images = (self._num_steps - step) * self._batch_size
    text = (
        f'about {words.duration(images / images_per_second)} left, at'
        f' {images_per_second:.1f} images/s'
    )
    if hindrances:
      text += f'; slowed down by: {", ".join(hindrances)}'
    logging.info('%s', text)

  def scalars(self, step, metrics, saved):
    self._progress.update(
        step,
        f'loss {metrics["loss"]:.4f}'
        f'  {metrics["images_per_second"]:.1f} images/s'
        f'  saved {saved or "nothing"}',
    )

  def images(self, step, images, seconds):
    logging.info(
        'step %d  drew %d images in %.1f s', step, len(images), seconds
    )

  def close(self):
    self._progress.close()
