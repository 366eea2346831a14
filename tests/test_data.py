"""Order of the images as a function; parts of workers; refusals."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import ROOT
from support import tiny_config
import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.data import source as source_lib
from ddpm.run import config as config_lib
from ddpm.runtime.errors import UserError
from ddpm.training import trainer as trainer_lib


def indices(step, positions, *, seed=0, n=10, batch_size=4, rounds=8):
  return pipeline.batch_indices(
      seed,
      tf.constant(step, tf.int64),
      tf.constant(positions, tf.int64),
      batch_size=batch_size,
      num_images=n,
      shuffle_rounds=rounds,
  ).numpy()


def test_each_epoch_is_a_permutation_of_its_own():
  # 5 batches of 4 are two epochs of 10, across an edge in the third batch.
  order = np.concatenate([indices(step, [0, 1, 2, 3]) for step in range(5)])
  first, second = order[:10], order[10:]
  assert sorted(first) == sorted(second) == list(range(10))
  assert list(first) != list(second)
  assert list(first) != list(range(10))


def test_order_depends_on_the_seed_and_costs_nothing_to_enter():
  far = 10**12
  one = indices(far, [0, 1, 2, 3], n=60_000)
  assert list(one) == list(indices(far, [0, 1, 2, 3], n=60_000))
  assert list(one) != list(indices(far, [0, 1, 2, 3], n=60_000, seed=1))
  assert list(one[2:]) == list(indices(far, [2, 3], n=60_000))


def chi_squares(order):
  """Of an image's place in an epoch, and of which image follows which."""
  n = order.shape[1]
  places, followers = np.zeros([n, n]), np.zeros([n, n])
  np.add.at(places, (np.arange(n), order), 1)
  np.add.at(followers, (order[:, :-1], order[:, 1:]), 1)
  assert (followers.diagonal() == 0).all()
  return [
      np.sum((counts - counts.mean()) ** 2 / counts.mean())
      for counts in (places, followers[~np.eye(n, dtype=bool)])
  ]


@pytest.mark.parametrize('n', [10, 64])
def test_the_shuffle_is_as_uniform_as_numpys(n):
  epochs = 100_000 // n
  order = indices(
      np.arange(epochs).repeat(n), np.tile(np.arange(n), epochs), n=n,
      batch_size=n,
  ).reshape(epochs, n)  # fmt: skip
  generator = np.random.default_rng(0)
  oracle = generator.permuted(np.tile(np.arange(n), (epochs, 1)), axis=1)
  # The standard deviation of a difference of two, by degrees of freedom.
  deviation = np.sqrt(2 * 2 * (n - 1) ** 2)
  for ours, numpys in zip(chi_squares(order), chi_squares(oracle)):
    assert abs(ours - numpys) < 4 * deviation


def source(n=10):
  images = np.arange(n, dtype=np.uint8)[:, None, None, None]
  return source_lib.Images(images, np.arange(n, dtype=np.int32), n)


def elements(count, *, workers=1, worker=0, replicas=2, first_block=0, k=3):
  context = tf.distribute.InputContext(workers, worker, replicas)
  dataset = pipeline.batches(
      source(),
      seed=0,
      batch_size=4,
      shuffle_rounds=8,
      first_block=first_block,
      steps_per_block=k,
      context=context,
  )
  return list(dataset.take(count).as_numpy_iterator())


def test_parts_of_replicas_make_the_global_batch():
  parts = elements(2)
  assert parts[0]['image'].shape == (3, 2, 1, 1, 1)
  assert [list(part['position'][0]) for part in parts] == [[0, 1], [2, 3]]
  for step in range(3):
    got = np.concatenate([part['label'][step] for part in parts])
    assert list(got) == list(indices(step, [0, 1, 2, 3]))
    images = np.concatenate([part['image'][step] for part in parts])
    assert list(images.ravel()) == list(got)


def test_workers_and_resumes_see_the_same_blocks():
  whole = elements(6)
  for worker in range(2):
    part = elements(3, workers=2, worker=worker)
    for block in range(3):
      tf.nest.map_structure(
          np.testing.assert_array_equal, part[block], whole[2 * block + worker]
      )
  resumed = elements(2, first_block=2)
  tf.nest.map_structure(np.testing.assert_array_equal, resumed, whole[4:])


def test_mnist5k_is_500_of_each_digit():
  digits = catalog.load('mnist5k', image_size=28)
  assert digits.images.shape == (5000, 28, 28, 1)
  assert digits.images.dtype == np.uint8 and digits.num_classes == 10
  assert list(np.bincount(digits.labels)) == [500] * 10
  assert digits.images.max() == 255
  path = pathlib.Path(pipeline.__file__).with_name('mnist5k.npz')
  assert path.stat().st_size < 1e6


@pytest.mark.parametrize(
    'name, split, size, message',
    [
        ('mnist', 'train', 28, "data set 'mnist' is unknown, expected mnist"),
        ('mnist5k', 'test', 28, "no split 'test'"),
        ('mnist5k', 'train', 32, '28 x 28 pixels, but data.image_size is 32'),
        ('tfds:no_such_set', 'train', 28, "no data set 'no_such_set'"),
    ],
)
def test_refuses(name, split, size, message, tmp_path):
  with pytest.raises(UserError, match=message):
    catalog.load(name, data_dir=str(tmp_path), split=split, image_size=size)


def test_unprepared_data_without_network_is_one_line_at_once(
    monkeypatch, tmp_path
):
  import socket

  def refuse(*args):
    raise OSError('no route to host')

  monkeypatch.setattr(socket, 'create_connection', refuse)
  monkeypatch.setattr('urllib.request.getproxies', dict)
  with pytest.raises(UserError, match=r'not prepared in .* no network'):
    catalog.load(
        'tfds:mnist', data_dir=str(tmp_path), split='train', image_size=28
    )


@pytest.fixture(scope='module')
def own_sets(tmp_path_factory):
  """A folder of small data sets of tensorflow-datasets."""
  import tensorflow_datasets as tfds

  folder = str(tmp_path_factory.mktemp('tfds'))

  def write(name, features, **columns):
    tfds.dataset_builders.store_as_tfds_dataset(
        name, version='1.0.0', data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            'train': tf.data.Dataset.from_tensor_slices(columns),
        },
    )  # fmt: skip

  ramp = np.arange(256, dtype=np.int64).reshape(4, 8, 8, 1)
  classes = tfds.features.ClassLabel(num_classes=3)
  write(
      'sixteen',
      {
          'picture': tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16),
          'kind': classes,
      },
      picture=(ramp * 257).astype(np.uint16),
      kind=[0, 1, 2, 1],
  )
  write(
      'floats',
      {'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32)},
      image=(ramp / 255).astype(np.float32),
  )
  write(
      'beyond',
      {'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32)},
      image=ramp.astype(np.float32),
  )
  write(
      'unlabelled',
      {
          'image': tfds.features.Image(shape=(8, 8, 1)),
          'label': tfds.features.Tensor(shape=(), dtype=np.int64),
          'class': classes,
      },
      **{
          'image': ramp.astype(np.uint8),
          'label': [0, 1, 2, 1],
          'class': [0, -1, 2, -1],
      },
  )
  return folder


@pytest.mark.parametrize(
    'name, keys, classes',
    [
        ('sixteen', {'image_key': 'picture', 'label_key': 'kind'}, 3),
        ('floats', {}, 0),
        ('unlabelled', {'label_key': 'class'}, 3),
    ],
)
def test_features_of_other_kinds(own_sets, name, keys, classes):
  loaded = catalog.load(f'tfds:{name}', data_dir=own_sets, image_size=8, **keys)
  # tensorflow-datasets writes them in its own order.
  np.testing.assert_array_equal(np.sort(loaded.images.ravel()), np.arange(256))
  assert loaded.num_classes == classes
  assert loaded.labels.shape == (4,)


@pytest.mark.parametrize(
    'name, keys, message',
    [
        ('sixteen', {}, "no 'image', it has: .*; set data.image_key"),
        ('floats', {'label_key': 'kind'}, "no 'kind', .*set data.label_key"),
        ('unlabelled', {'image_key': 'label'}, r'the shape \(\), expected im'),
        ('beyond', {}, 'an image has values beyond 1'),
    ],
)
def test_other_features_are_one_line(own_sets, name, keys, message):
  with pytest.raises(UserError, match=message):
    catalog.load(f'tfds:{name}', data_dir=own_sets, image_size=8, **keys)


def test_images_without_a_class(own_sets):
  config = tiny_config(**{
      'data.name': 'tfds:unlabelled',
      'data.data_dir': own_sets,
      'data.image_size': 8,
      'data.label_key': 'class',
      'model.num_classes': 3,
  })
  message = r'2 of 4 .* no class, such as number \d, whose label is -1, exp'
  with pytest.raises(UserError, match=message):
    trainer_lib._load_data(config)
  config.data.unlabelled = 'null'
  with pytest.raises(UserError, match=r'unlabelled is null, which needs'):
    config_lib.validate(config)
  config.train.label_dropout = 0.1
  config_lib.validate(config)
  # The null class is the one after the last.
  assert sorted(trainer_lib._load_data(config).labels) == [0, 2, 3, 3]


PREPARED = os.environ.get('DDPM_TEST_TFDS', '')


needs_mnist = pytest.mark.skipif(
    not PREPARED, reason='DDPM_TEST_TFDS names no folder with a prepared mnist'
)


@needs_mnist
def test_tfds_that_lost_a_part_is_named(tmp_path):
  shutil.copytree(PREPARED, tmp_path / 'copy')
  (shard, *_) = (tmp_path / 'copy').glob('mnist/*/*test*')
  shard.unlink()
  with pytest.raises(UserError, match=f'cannot be read: .*{shard.name}; No su'):
    catalog.load(
        'tfds:mnist', data_dir=str(tmp_path / 'copy'), split='test',
        image_size=28,
    )  # fmt: skip


@needs_mnist
def test_tfds_mnist():
  digits = catalog.load(
      'tfds:mnist', data_dir=PREPARED, split='test', image_size=14
  )
  assert digits.images.shape == (10_000, 14, 14, 1)
  assert digits.num_classes == 10
  with pytest.raises(UserError, match="no split 'tset', it has: "):
    catalog.load('tfds:mnist', data_dir=PREPARED, split='tset', image_size=28)


# As on a TPU slice: the first process has the images, the second, which has no
# Python to call, maps their file and reads a batch.
_REMOTE = """
import socket, subprocess, sys
import numpy as np
import tensorflow as tf
from ddpm.data import pipeline, source

if sys.argv[1] == 'server':
  address = sys.argv[2]
  tf.distribute.Server({'worker': [address]}, job_name='worker').join()

with socket.socket() as s:
  s.bind(('127.0.0.1', 0))
  address = f'127.0.0.1:{s.getsockname()[1]}'
server = subprocess.Popen(
    [sys.executable, '-c', sys.argv[2], 'server', address])
try:
  tf.config.experimental_connect_to_host(address)
  labels = np.arange(10, dtype=np.int32)
  # Not what is in the file.
  images = source.Images(np.zeros([10, 2, 3, 1], np.uint8), labels, 10,
                         'digest', 'some', sys.argv[1])
  with tf.device('/job:worker/task:0/device:CPU:0'):
    dataset = pipeline.batches(
        images, seed=0, batch_size=4, shuffle_rounds=8, first_block=0,
        steps_per_block=3, context=tf.distribute.InputContext(), remote=True)
    batch = next(iter(dataset))
    assert 'job:worker' in batch['image'].device, batch['image'].device
  for name in ('image', 'label'):
    print(batch[name].numpy().ravel().tolist())
finally:
  server.kill()
"""


def test_another_host_maps_the_images(tmp_path):
  path = tmp_path / 'images'
  path.write_bytes(bytes(range(60)))
  done = subprocess.run(
      [sys.executable, '-c', _REMOTE, str(path), _REMOTE],
      cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  images, labels = map(json.loads, done.stdout.splitlines())
  expected = np.arange(60).reshape(10, 6)[labels]
  np.testing.assert_array_equal(np.reshape(images, [12, 6]), expected)
