"""Images per second of the data, without training: images from memory, from a
folder, and from prepared files in random order, each beside a plain tf.data
loop; the memory of ten million records; times to the first batch.

  python tests/benchmarks/data.py --dir=/tmp/data [--images=20000]

--dir is for the made images, which are kept there for the next call.
"""

import os
import shutil
import statistics
import time

from absl import app
from absl import flags
import numpy as np
from PIL import Image
import tqdm

from ddpm.runtime import environment

environment.import_tensorflow()

import tensorflow as tf  # noqa: E402

from ddpm.data import catalog  # noqa: E402
from ddpm.data import pipeline  # noqa: E402
from ddpm.data import prepare  # noqa: E402
from ddpm.data import resize  # noqa: E402
from ddpm.runtime import cache  # noqa: E402
from ddpm.runtime import memory  # noqa: E402

FLAGS = flags.FLAGS

flags.DEFINE_string('dir', None, 'Folder for the made images.', required=True)
flags.DEFINE_integer('images', 20_000, 'JPEG files to make.')
flags.DEFINE_integer('records', 10_000_000, 'Small records to make.')

_BATCH, _STEPS = 64, 10
_SIZE = 64
_SECONDS = 8
_ROUNDS = 3


def make_jpegs(folder, count):
  """Files of mixed sizes, modes and orientations, in ten sub-folders."""
  rng = np.random.default_rng(0)
  for i in tqdm.trange(count, desc='making files'):
    path = os.path.join(folder, str(i % 10), f'{i}.jpg')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    coarse = rng.integers(0, 256, [12, 12, 3], np.uint8)
    size = rng.integers(80, 400, 2)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    mode = ('RGB', 'RGB', 'RGB', 'L', 'CMYK')[i % 5]
    image.convert(mode).save(path, quality=85, exif=exif)


def batches(source):
  """The training's blocks."""
  return pipeline.batches(
      source,
      seed=0,
      batch_size=_BATCH,
      first_block=0,
      steps_per_block=_STEPS,
      context=tf.distribute.InputContext(1, 0, 1),
  )


def rate(dataset, images_per_element):
  """Images per second of a data set, for some seconds."""
  elements = iter(dataset)
  next(elements)
  began, count = time.monotonic(), 0
  while time.monotonic() - began < _SECONDS:
    if next(elements, None) is None:
      break
    count += images_per_element
  return count / (time.monotonic() - began)


def in_turn(**datasets):
  """Medians of the rates of data sets, measured in turn."""
  rates = {name: [] for name in datasets}
  for _ in range(_ROUNDS):
    for name, (dataset, images) in datasets.items():
      rates[name].append(rate(dataset, images))
  return {name: statistics.median(values) for name, values in rates.items()}


def decode_loop(paths):
  """What a tf.data loop over JPEG files does."""

  def load(path):
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    return resize.fit(image, _SIZE, _SIZE, 'center_crop')

  dataset = tf.data.Dataset.from_tensor_slices(paths)
  return dataset.map(load, tf.data.AUTOTUNE).batch(_BATCH).prefetch(2)


def timed(function):
  began = time.monotonic()
  return function(), time.monotonic() - began


def main(_):
  root = FLAGS.dir
  cache.folder = lambda: os.path.join(root, 'cache')
  digits = catalog.load('mnist5k', image_size=28)
  found = in_turn(digits=(batches(digits), _BATCH * _STEPS))
  print(f"images of 28 x 28 from memory: {found['digits']:,.0f}/s")

  jpegs = os.path.join(root, f'jpegs-{FLAGS.images}')
  if not os.path.exists(jpegs):
    make_jpegs(jpegs + '.part', FLAGS.images)
    os.rename(jpegs + '.part', jpegs)
  paths = [
      os.path.join(folder, name)
      for folder, _, names in os.walk(jpegs)
      for name in names
  ]
  np.random.default_rng(0).shuffle(paths)
  name = f'folder:{jpegs}'
  ours, plain = [], []
  for _ in range(_ROUNDS):
    shutil.rmtree(cache.folder(), ignore_errors=True)
    source, seconds = timed(lambda: catalog.load(name, image_size=_SIZE))
    ours.append(len(source) / seconds)
    _, seconds = timed(lambda: [None for _ in decode_loop(paths)])
    plain.append(len(paths) / seconds)
  ours, plain = map(statistics.median, (ours, plain))
  print(
      f'{len(paths):,} JPEG files, decoded to {_SIZE} x {_SIZE}: {ours:,.0f}/s;'
      f' a tf.data loop {plain:,.0f}/s: {ours / plain:.2f} times'
  )
  _, seconds = timed(lambda: catalog.load(name, image_size=_SIZE))
  print(f'the second start: {seconds:.2f} s')

  out = os.path.join(root, f'prepared-{FLAGS.images}')
  _, seconds = timed(lambda: prepare.prepare(
      out, data=name, image_size=(_SIZE * 2,) * 2, channels=3, split='train',
      resize='center_crop', labels='folders', on_error='stop', data_dir='',
      image_key='image', label_key='label', encoding='jpeg',
  ))  # fmt: skip
  print(f'prepared in {seconds:.0f} s')
  memory.total = lambda: 0
  source, seconds = timed(
      lambda: catalog.load(f'prepared:{out}', image_size=_SIZE * 2)
  )
  _, more = timed(lambda: next(iter(batches(source))))
  print(f'prepared files: {seconds + more:.2f} s to the first batch')
  records = list(source._records)
  path = os.path.join(root, 'sequence.tfrecord')
  with tf.io.TFRecordWriter(path) as writer:
    for record in records:
      writer.write(record)
  in_sequence = (
      tf.data.TFRecordDataset(path)
      .map(source._decode, tf.data.AUTOTUNE)
      .batch(_BATCH)
      .prefetch(2)
      .repeat()
  )
  found = in_turn(
      random=(batches(source), _BATCH * _STEPS), sequence=(in_sequence, _BATCH)
  )
  print(
      f"JPEG records of {_SIZE * 2} x {_SIZE * 2} at random:"
      f" {found['random']:,.0f}/s; in sequence by tf.data"
      f" {found['sequence']:,.0f}/s: {found['random'] / found['sequence']:.2f}"
      ' times'
  )


if __name__ == '__main__':
  app.run(main)
