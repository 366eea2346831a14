"""Prepared data sets: the same images, from whatever machine, in any order."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
from support import ROOT
from support import run_program
from support import tiny_config
import tensorflow as tf
import tensorflow_datasets as tfds

from ddpm.data import catalog
from ddpm.data import pipeline
from ddpm.data import prepare
from ddpm.metrics import real_images
from ddpm.runtime import cache
from ddpm.runtime import memory
from ddpm.runtime.errors import UserError
from ddpm.training import trainer as trainer_lib

CLASSES = ('b', 'a', 'ü')

SETTINGS = {
    'split': 'train', 'resize': 'center_crop', 'labels': 'folders',
    'on_error': 'stop', 'data_dir': '~', 'image_key': 'image',
    'label_key': 'label', 'encoding': 'png',
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  folder = tmp_path_factory.getbasetemp() / 'cache'
  folder.mkdir(exist_ok=True)
  monkeypatch.setattr(cache, 'folder', lambda: str(folder))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """120 images of noise, of three classes."""
  root = tmp_path_factory.mktemp('images') / 'a [1] é'
  noise = np.random.default_rng(0).integers(0, 256, [120, 9, 12, 3], np.uint8)
  for i, image in enumerate(noise):
    path = root / CLASSES[i % 3] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  return root


def run(data, out, **settings):
  usual = {'data': data, 'image_size': (8, 8), 'channels': 3}
  return prepare.prepare(str(out), **(SETTINGS | usual | settings))


@pytest.fixture(scope='module')
def prepared(images, tmp_path_factory):
  """The images in several files."""
  out = tmp_path_factory.mktemp('out') / 'b [1] é'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, '_SHARD_BYTES', 4000)
    lines = run(f'folder:{images}', out)
  count = len(list(out.glob('*array_record*')))
  assert count > 5
  assert lines[0].startswith(f'120 images of 8 x 8 x 3 in {count} files, ')
  return out


@pytest.fixture
def small_memory(monkeypatch):
  monkeypatch.setattr(memory, 'total', lambda: 100)


def load(path, **settings):
  return catalog.load(f'prepared:{path}', image_size=8, **settings)


def blocks(source, count, *, batch_size=6, k=2, workers=1, worker=0):
  dataset = pipeline.batches(
      source,
      seed=3,
      batch_size=batch_size,
      shuffle_rounds=8,
      first_block=1,
      steps_per_block=k,
      context=tf.distribute.InputContext(workers, worker, 2),
  )
  return list(dataset.take(count).as_numpy_iterator())


def test_the_same_images_as_those_of_the_folder(images, prepared):
  folder = catalog.load(f'folder:{images}', image_size=8)
  loaded = load(prepared)
  np.testing.assert_array_equal(loaded.images, folder.images)
  np.testing.assert_array_equal(loaded.labels, folder.labels)
  assert loaded.num_classes == 3


def test_the_same_batches_in_memory_and_from_the_files(
    prepared, small_memory, monkeypatch
):
  later = load(prepared)
  assert not hasattr(later, 'images')
  monkeypatch.undo()
  now = load(prepared)
  assert later.digest == now.digest and len(later) == len(now) == 120
  assert later.shape == now.shape and later.num_classes == now.num_classes
  expected = blocks(now, 50)  # More than an epoch.
  tf.nest.map_structure(
      np.testing.assert_array_equal, blocks(later, 50), expected
  )
  for worker in range(2):
    part = blocks(later, 9, workers=2, worker=worker)
    tf.nest.map_structure(
        np.testing.assert_array_equal, part, expected[worker:18:2]
    )
  order = np.array([7, 119, 0, 7])
  np.testing.assert_array_equal(later.gather(order), now.gather(order))
  np.testing.assert_array_equal(later.labels_of(order), now.labels_of(order))


def test_references_of_scores_are_the_same(
    prepared, small_memory, monkeypatch
):
  name = f'prepared:{prepared}'
  later = real_images.RealImages(name, (8, 8, 3)).split('train')
  monkeypatch.undo()
  now = real_images.RealImages(name, (8, 8, 3)).split('train')
  assert later.identity == now.identity and len(later) == len(now) == 120
  np.testing.assert_array_equal(later.read(20, 60), now.read(20, 60))
  np.testing.assert_array_equal(later.labels[20:60], now.labels[20:60])


def test_parts_of_a_split(prepared, small_memory, monkeypatch):
  later = load(prepared, split='train[10:100]')
  monkeypatch.undo()
  whole = load(prepared)
  np.testing.assert_array_equal(
      later.gather(np.arange(90)), whole.images[10:100]
  )


def test_tensorflow_datasets_reads_it(images, prepared):
  builder = tfds.builder_from_directory(prepared)
  assert builder.info.splits['train'].num_examples == 120
  assert builder.info.features['label'].names == sorted(CLASSES)
  records = builder.as_data_source('train')
  expected = catalog.load(f'folder:{images}', image_size=8)
  for i in (0, 50, 119):
    np.testing.assert_array_equal(records[i]['image'], expected.images[i])
    assert records[i]['label'] == expected.labels[i]
    with Image.open(images / records[i]['image/filename'].decode()) as file:
      assert file.size == (12, 9)


def test_jpeg_is_smaller_and_alike(images, tmp_path):
  run(f'folder:{images}', tmp_path, encoding='jpeg')
  found = load(tmp_path).images.astype(int)
  exact = catalog.load(f'folder:{images}', image_size=8).images
  assert 0 < np.abs(found - exact).mean() < 30


def test_prepared_sets_are_prepared_again(images, prepared, tmp_path):
  """Of another size, or a part of them."""
  run(f'prepared:{prepared}', tmp_path / 'small', image_size=(4, 4))
  small = catalog.load(f'prepared:{tmp_path}/small', image_size=4)
  assert small.shape == (4, 4, 3) and len(small) == 120
  run(f'prepared:{prepared}', tmp_path / 'part', split='train[10:40]')
  part = load(tmp_path / 'part')
  np.testing.assert_array_equal(part.images, load(prepared).images[10:40])


def test_splits_share_a_folder(tmp_path):
  columns = {'image': np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)}
  dataset = tf.data.Dataset.from_tensor_slices(columns)
  tfds.dataset_builders.store_as_tfds_dataset(
      'digits', version='1.0.0', data_dir=tmp_path,
      features=tfds.features.FeaturesDict(
          {'image': tfds.features.Image(shape=(8, 8, 1))}
      ),
      split_datasets={'train': dataset.take(4), 'test': dataset.take(2)},
  )  # fmt: skip
  how = {'data_dir': str(tmp_path), 'channels': None, 'image_size': None}
  for split in ('train', 'test'):
    prepare.prepare(
        str(tmp_path / 'out'),
        **(SETTINGS | how | {'data': 'tfds:digits', 'split': split}),
    )
  message = r'prepared with image_size \(8, 8\), not \(4, 4\): use another'
  with pytest.raises(UserError, match=message):
    run('tfds:digits', tmp_path / 'out', data_dir=str(tmp_path),
        split='test[:1]', image_size=(4, 4), channels=None)  # fmt: skip
  assert len(load(tmp_path / 'out')) == 4
  assert len(load(tmp_path / 'out', split='test')) == 2


def _contents(out):
  return {
      path.name: path.read_bytes()
      for path in out.iterdir()
      if path.name.startswith(('images-', 'dataset_info', 'features'))
  }


_CHILD = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from ddpm.runtime import environment
environment.import_tensorflow()
from ddpm.data import prepare
prepare._SHARD_BYTES = 4000
prepare.prepare(
    sys.argv[2], data=sys.argv[1], image_size=(8, 8), channels=3,
    **{SETTINGS!r},
)
"""


def test_killed_again_and_again(images, prepared, tmp_path):
  out = tmp_path / 'out'

  def start():
    return subprocess.Popen(
        [sys.executable, '-c', _CHILD, f'folder:{images}', str(out)]
    )

  for shards in (1, 4):
    child = start()
    while child.poll() is None and len(list(out.glob('images-*'))) < shards:
      time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
  assert not (out / 'dataset_info.json').exists()
  with pytest.raises(UserError, match='is no prepared data set'):
    load(out)
  assert start().wait() == 0
  expected = _contents(prepared)
  assert _contents(out) == expected
  assert [p.name for p in out.iterdir() if p.name.startswith('.images-')] == []


def test_beam_writes_the_same(images, prepared, tmp_path, monkeypatch):
  pytest.importorskip('apache_beam')
  from ddpm.data import beam

  monkeypatch.setattr(prepare, '_SHARD_BYTES', 4000)
  run(
      f'folder:{images}', tmp_path / 'out',
      run=beam.Beam('DirectRunner', ['direct_num_workers=2']),
  )  # fmt: skip
  assert _contents(tmp_path / 'out') == _contents(prepared)


def test_beam_prepares_sets_that_need_it(tmp_path, monkeypatch):
  apache_beam = pytest.importorskip('apache_beam')
  from ddpm.data import beam

  class GreyLevels(tfds.core.GeneratorBasedBuilder):
    """A set of tensorflow-datasets that is made by Beam."""

    VERSION = tfds.core.Version('1.0.0')
    pkg_dir_path = ROOT / 'tests'

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(
              {'image': tfds.features.Image(shape=(8, 8, 1))}
          ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      def example(i):
        return i, {'image': np.full([8, 8, 1], i, np.uint8)}

      return apache_beam.Create(range(20)) | apache_beam.Map(example)

  # Nothing is downloaded, but a network is looked for.
  monkeypatch.setattr('urllib.request.getproxies', lambda: {'http': 'a'})
  run(
      'tfds:grey_levels', tmp_path / 'out', data_dir=str(tmp_path),
      channels=None, run=beam.Beam('DirectRunner', []),
  )  # fmt: skip
  levels = load(tmp_path / 'out').images[:, 0, 0, 0]
  assert sorted(levels) == list(range(20))


def test_other_settings_and_images_are_refused(images, prepared, tmp_path):
  with pytest.raises(UserError, match=r'encoding png, not jpeg: use another'):
    run(f'folder:{images}', prepared, encoding='jpeg')
  other = tmp_path / 'other'
  other.mkdir()
  for i in range(3):
    Image.new('RGB', (8, 8), (i, 0, 0)).save(other / f'{i}.png')
  message = 'begun with 120 images of .*, which have changed, or are others'
  with pytest.raises(UserError, match=message):
    run(f'folder:{other}', prepared)
  assert run(f'folder:{images}', prepared)[0].startswith('120 images')


def test_broken_images_stop_or_are_left_out(images, tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  for i in range(20):
    Image.new('RGB', (8, 8), (i, 0, 0)).save(folder / f'{i:02d}.png')
  (folder / '07.png').write_bytes(b'')
  with pytest.raises(UserError, match=r'07\.png is broken: the file is empty'):
    run(f'folder:{folder}', tmp_path / 'stopped')
  lines = run(f'folder:{folder}', tmp_path / 'out', on_error='skip')
  assert lines[0].startswith('19 images')
  assert lines[1] == '1 broken images are left out'
  assert 7 not in load(tmp_path / 'out').images[:, 0, 0, 0]


def test_classes_with_names_that_are_no_text(tmp_path):
  for name in (b'a\xff', b'a\xfe', b'b\nc'):
    path = os.path.join(os.fsencode(tmp_path), b'in', name)
    os.makedirs(path)
    Image.new('RGB', (8, 8)).save(os.path.join(path, b'0.png'))
  run(f'folder:{tmp_path}/in', tmp_path / 'out')
  loaded = load(tmp_path / 'out')
  assert loaded.num_classes == 3 and sorted(loaded.labels) == [0, 1, 2]


@pytest.fixture
def copy(prepared, tmp_path):
  """A copy whose files can be damaged, and one of them."""
  for name, data in _contents(prepared).items():
    (tmp_path / name).write_bytes(data)
  (tmp_path / 'label.labels.txt').write_bytes(
      (prepared / 'label.labels.txt').read_bytes()
  )
  return tmp_path, sorted(tmp_path.glob('images-*'))[2]


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda data: data[:-1000], 'is not whole: 0 of'),
        (lambda data: b'', 'is not whole: 0 of'),
        (None, 'cannot be read: .*No such file'),
        (
            # In a picture.
            lambda data: data.replace(b'IDAT', b'IDAX', 1),
            'is damaged at record 0: Corrupted',
        ),
    ],
)
def test_damaged_files_are_named(
    copy, damage, message, in_memory, monkeypatch
):
  folder, file = copy
  if damage:
    file.write_bytes(damage(file.read_bytes()))
  else:
    file.unlink()
  if not in_memory:
    monkeypatch.setattr(memory, 'total', lambda: 1000)
  with pytest.raises(UserError, match=f'{file.name} {message}'):
    source = load(folder)
    with source.reading():
      blocks(source, 50)


def test_labels_that_are_no_class_are_found_when_they_are_read(
    tmp_path, small_memory
):
  tfds.dataset_builders.store_as_tfds_dataset(
      'unlabelled', version='1.0.0', data_dir=tmp_path,
      features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(8, 8, 1)),
          'label': tfds.features.ClassLabel(num_classes=3),
      }),
      split_datasets={'train': tf.data.Dataset.from_tensor_slices({
          'image': np.zeros([4, 8, 8, 1], np.uint8), 'label': [0, -1, 2, -1],
      })},
      file_format='array_record',
  )  # fmt: skip
  config = tiny_config(**{
      'data.name': 'tfds:unlabelled',
      'data.data_dir': str(tmp_path),
      'data.image_size': 8,
      'model.num_classes': 3,
  })
  source = trainer_lib._load_data(config)
  message = r'\d of 4 images of .* no class, such as number \d, whose label is '
  with pytest.raises(UserError, match=message), source.reading():
    blocks(source, 1, batch_size=4, k=2)
  config.data.unlabelled = 'null'
  (block, _) = blocks(trainer_lib._load_data(config), 2, batch_size=4, k=2)
  assert set(block['label'].ravel()) <= {0, 2, 3}


@pytest.mark.parametrize('in_memory', [True, False])
def test_records_that_are_no_images(tmp_path, in_memory, monkeypatch):
  tfds.dataset_builders.store_as_tfds_dataset(
      'beyond', version='1.0.0', data_dir=tmp_path,
      features=tfds.features.FeaturesDict({
          'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32),
      }),
      split_datasets={'train': tf.data.Dataset.from_tensor_slices(
          {'image': np.full([4, 8, 8, 1], 255, np.float32)}
      )},
      file_format='array_record',
  )  # fmt: skip
  if not in_memory:
    monkeypatch.setattr(memory, 'total', lambda: 100)
  message = 'tfds:beyond cannot be read: .*an image has values beyond 1'
  with pytest.raises(UserError, match=message):
    source = catalog.load(
        'tfds:beyond', data_dir=str(tmp_path), image_size=8
    )
    with source.reading():
      blocks(source, 1)


def test_sets_that_are_not_there(tmp_path):
  with pytest.raises(UserError, match='is no prepared data set, which has a'):
    load(tmp_path)
  (tmp_path / 'dataset_info.json').write_text('{')
  with pytest.raises(UserError, match='cannot be read: '):
    load(tmp_path)


def test_the_program(images, tmp_path):
  flags = [f'--data=folder:{images}', f'--out={tmp_path / "o"}']
  done = run_program('ddpm.data', 'prepare', *flags, '--image_size=8,10')
  assert done.returncode == 0, done.stderr
  first, second = done.stdout.splitlines()
  assert first.startswith('120 images of 8 x 10 x 3 in 1 files, ')
  assert second == (
      f'to train: python -m ddpm.main --config=configs/folder.py:{tmp_path}/o'
      ' --workdir=...'
  )
  for args, message in [
      (['--data=mnist'], "--data is 'mnist', expected folder:PATH or tfds:"),
      (flags[:1], '--out is missing: pass the folder to write to'),
      ([*flags, '--image_size=x'], "--image_size is 'x', expected a number of"),
      ([*flags, '--image_size=9'], f'{tmp_path}/o has images that were prepar'),
      ([*flags, '--out=gs://b/c'], '--out is gs://b/c, but ArrayRecord files'),
      ([*flags, '--image_channels=2'], '--image_channels is 2, expected 1 (gr'),
      (
          [*flags, '--image_channels=4', '--encoding=jpeg'],
          '--encoding is jpeg, which has no transparency',
      ),
      ([*flags, '--split=test'], "--split is 'test', but a folder has only"),
  ]:
    done = run_program('ddpm.data', 'prepare', *args)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith(f'ddpm: error: {message}')
