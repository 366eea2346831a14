"""Images per second of the data alone: from memory, from a folder, and from
prepared files in random order, each beside a plain tf.data loop; times to the
first batch; the memory that ten million records take.

  python tests/benchmarks/data.py --dir=/tmp/data

--dir is for the made images, which are kept there for the next call.
"""

import itertools
import os
import shutil
import statistics
import time

from absl import app
from absl import flags
from array_record.python import array_record_module
import numpy as np
from PIL import Image
import psutil
import tqdm

from ddpm.runtime import environment

environment.import_tensorflow()

import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

from ddpm.data import catalog  # noqa: E402
from ddpm.data import pipeline  # noqa: E402
from ddpm.data import prepare  # noqa: E402
from ddpm.data import resize  # noqa: E402
from ddpm.runtime import cache  # noqa: E402
from ddpm.runtime import memory  # noqa: E402

FLAGS = flags.FLAGS

flags.DEFINE_string('dir', None, 'Folder for the made images.', required=True)
flags.DEFINE_integer('images', 10_000, 'JPEG files to make.')
flags.DEFINE_integer('records', 10_000_000, 'Small records to make.')

_BATCH, _STEPS = 64, 10
_SIZE = 64
_FILES = 50
_SECONDS = 8
_ROUNDS = 3


def made(path, make):
  """The path, with what `make` puts there if it is not there yet."""
  if not os.path.exists(path):
    shutil.rmtree(path + '.part', ignore_errors=True)
    os.makedirs(path + '.part')
    make(path + '.part')
    os.rename(path + '.part', path)
  return path


def make_jpegs(folder):
  """RGB and grey files of 80 to 400 pixels, in ten sub-folders."""
  rng = np.random.default_rng(0)
  for i in tqdm.trange(FLAGS.images, desc='making files'):
    path = os.path.join(folder, str(i % 10), f'{i}.jpg')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    coarse = rng.integers(0, 256, [12, 12, 3], np.uint8)
    size = rng.integers(80, 400, 2)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.convert('L' if i % 5 == 0 else 'RGB').save(path, quality=85)


def make_records(folder):
  """Flat images of 8 x 8 pixels, in files as `prepare` writes them."""
  features = tfds.features.FeaturesDict(
      {'image': tfds.features.Image(shape=(8, 8, 1))}
  )
  records = [
      features.serialize_example({'image': np.full([8, 8, 1], i, np.uint8)})
      for i in range(256)
  ]
  length = FLAGS.records // _FILES
  for i in tqdm.trange(_FILES, desc='making records'):
    name = f'images-train.array_record-{i:05d}-of-{_FILES:05d}'
    writer = array_record_module.ArrayRecordWriter(
        os.path.join(folder, name), 'group_size:1,uncompressed'
    )
    for record in itertools.islice(itertools.cycle(records), length):
      writer.write(record)
    writer.close()
  template = tfds.core.ShardedFileTemplate(
      data_dir=folder, dataset_name='images', filetype_suffix='array_record'
  )
  split = tfds.core.SplitInfo(
      name='train', shard_lengths=[length] * _FILES, num_bytes=0,
      filename_template=template.replace(split='train'),
  )  # fmt: skip
  tfds.folder_dataset.write_metadata(
      data_dir=folder, features=features, split_infos=[split],
      filename_template=template, check_data=False,
  )  # fmt: skip


def settings(data):
  """How JPEG files are prepared."""
  return {
      'data': data, 'image_size': (2 * _SIZE,) * 2, 'channels': 3,
      'split': 'train', 'resize': 'center_crop', 'labels': 'folders',
      'on_error': 'stop', 'data_dir': '', 'image_key': 'image',
      'label_key': 'label', 'encoding': 'jpeg',
  }  # fmt: skip


def batches(source):
  """The training's blocks."""
  return pipeline.batches(
      source,
      seed=0,
      batch_size=_BATCH,
      shuffle_rounds=8,
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
    next(elements)
    count += images_per_element
  return count / (time.monotonic() - began)


def in_turn(*functions):
  """Medians of what functions return, called in turn."""
  values = [[function() for function in functions] for _ in range(_ROUNDS)]
  return map(statistics.median, zip(*values))


def timed(function):
  began = time.monotonic()
  return function(), time.monotonic() - began


def cpu_time(function):
  """Seconds of the CPU that a function takes, on all cores."""
  began = time.process_time()
  function()
  return time.process_time() - began


def load_folder(name):
  """Decodes a folder anew."""
  shutil.rmtree(cache.folder(), ignore_errors=True)
  catalog.load(name, image_size=_SIZE)


def decode_loop(paths):
  """What a plain tf.data loop over JPEG files does."""

  def load(path):
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    return resize.fit(image, _SIZE, _SIZE, 'center_crop')

  dataset = tf.data.Dataset.from_tensor_slices(paths)
  dataset = dataset.map(load, tf.data.AUTOTUNE).batch(_BATCH).prefetch(2)
  for _ in dataset:
    pass


def main(_):
  root = os.path.abspath(FLAGS.dir)
  cache.folder = lambda: os.path.join(root, 'cache')
  digits = catalog.load('mnist5k', image_size=28)
  print(f'from memory: {rate(batches(digits), _BATCH * _STEPS):,.0f} images/s')

  jpegs = made(os.path.join(root, f'jpegs-{FLAGS.images}'), make_jpegs)
  name = f'folder:{jpegs}'
  paths = [
      os.path.join(folder, file)
      for folder, _, files in os.walk(jpegs)
      for file in files
  ]
  # Both use all cores; seconds of the CPU vary less than those of the clock.
  ours, plain = in_turn(
      lambda: cpu_time(lambda: load_folder(name)),
      lambda: cpu_time(lambda: decode_loop(paths)),
  )
  print(
      f'JPEG files to {_SIZE} x {_SIZE}: {1e3 * ours / len(paths):.2f} ms of a'
      f' core each; a plain loop {1e3 * plain / len(paths):.2f}: as fast by'
      f' {plain / ours:.2f}'
  )
  _, seconds = timed(lambda: catalog.load(name, image_size=_SIZE))
  print(f'the second start: {seconds:.2f} s')

  out = os.path.join(root, 'prepared')
  shutil.rmtree(out, ignore_errors=True)
  _, seconds = timed(lambda: prepare.prepare(out, **settings(name)))
  print(f'prepared: {len(paths) / seconds:,.0f} images/s')
  memory.total = lambda: 0  # From here on, nothing fits in memory.
  source = catalog.load(f'prepared:{out}', image_size=2 * _SIZE)
  sequence = os.path.join(root, 'sequence.tfrecord')
  with tf.io.TFRecordWriter(sequence) as writer:
    for record in source._records:
      writer.write(record)
  plain = tf.data.TFRecordDataset(sequence).repeat()
  plain = plain.map(source._decode, tf.data.AUTOTUNE).batch(_BATCH).prefetch(2)
  ours, plain = in_turn(
      lambda: rate(batches(source), _BATCH * _STEPS),
      lambda: rate(plain, _BATCH),
  )
  print(
      f'JPEG records of {2 * _SIZE} x {2 * _SIZE} at random: {ours:,.0f}'
      f' images/s; in sequence by a plain loop {plain:,.0f}:'
      f' {ours / plain:.2f} times'
  )

  many = made(os.path.join(root, f'records-{FLAGS.records}'), make_records)
  process = psutil.Process()
  before = process.memory_info().rss
  source, seconds = timed(
      lambda: catalog.load(f'prepared:{many}', image_size=8)
  )
  _, more = timed(lambda: next(iter(batches(source))))
  found = rate(batches(source), _BATCH * _STEPS)
  print(
      f'{len(source):,} records: {seconds + more:.1f} s to the first batch,'
      f' {found:,.0f} images/s,'
      f' {(process.memory_info().rss - before) / 1e6:,.0f} MB'
  )


if __name__ == '__main__':
  app.run(main)
