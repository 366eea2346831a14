"""A folder of users' images: what is in it, and what is not."""

import os
import zlib

import numpy as np
from PIL import Image
import pytest
from support import run_program
from support import TINY_WITHOUT_XLA
import tensorflow as tf

from ddpm import rng
from ddpm.data import catalog
from ddpm.data import check
from ddpm.data import folder
from ddpm.data import pipeline
from ddpm.data import resize
from ddpm.data import source
from ddpm.data import store
from ddpm.runtime import cache
from ddpm.runtime.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setattr(
      cache, 'folder', lambda: str(tmp_path_factory.getbasetemp() / 'cache')
  )


def save(path, value, size=(10, 8), mode='RGB', **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size, (value, 0, 255 - value)).convert(mode).save(
      path, **options
  )


@pytest.fixture
def images(tmp_path):
  """Nine images of three classes, some with awkward names, and other files."""
  root = tmp_path / 'a [1] é'
  for i, name in enumerate(['b', 'a', 'ü']):
    for j in range(3):
      save(root / name / f'{j}_x.png', 60 * i + 20 * j)
  (root / 'notes.txt').write_text('not an image')
  (root / 'a' / '._0.png').write_bytes(b'of macOS')
  save(root / '.hidden' / 'c.png', 9)
  save(root / '__MACOSX' / 'c.png', 9)
  return root


def test_sub_folders_are_classes(images):
  listing = folder.list_images(str(images))
  assert listing.classes == ['a', 'b', 'ü']
  assert listing.names[2:4] == ['a/2_x.png', 'b/0_x.png']
  assert list(listing.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_other_classes(images):
  listing = folder.list_images(str(images), 'prefix')
  assert listing.classes == ['0', '1', '2']
  assert list(listing.labels) == [0, 1, 2] * 3
  assert not folder.list_images(str(images), 'none').classes
  # Images outside of the sub-folders have no class.
  save(images / 'outside.png', 3)
  assert not folder.list_images(str(images)).classes
  assert not folder.list_images(str(images / 'a')).classes


def test_names_in_any_case_and_encoding(tmp_path):
  save(tmp_path / 'a.PNG', 1)
  os.rename(tmp_path / 'a.PNG', os.fsencode(tmp_path) + b'/\xff.PNG')
  loaded = catalog.load(f'folder:{tmp_path}', image_size=8)
  assert loaded.images.shape == (1, 8, 8, 3)


def test_links_are_followed_but_not_in_circles(images, tmp_path):
  os.symlink(images, images / 'a' / 'circle')
  save(tmp_path / 'elsewhere' / 'z.png', 7)
  os.symlink(tmp_path / 'elsewhere', images / 'c')
  names = folder.list_images(str(images)).names
  assert len(names) == 10 and 'c/z.png' in names


def test_no_images(tmp_path):
  with pytest.raises(UserError, match='has no images: expected files that'):
    folder.list_images(str(tmp_path))
  with pytest.raises(UserError, match='gone is not a folder'):
    folder.list_images(str(tmp_path / 'gone'))


def test_images_as_they_are_trained_on(images):
  loaded = catalog.load(f'folder:{images}', image_size=8, channels=3)
  assert loaded.images.shape == (9, 8, 8, 3) and loaded.num_classes == 3
  # In the order of the names: a, b, ü.
  values = [60, 80, 100, 0, 20, 40, 120, 140, 160]
  np.testing.assert_array_equal(loaded.images[:, 4, 4, 0], values)
  grey = catalog.load(f'folder:{images}', image_size=4, channels=1)
  assert grey.images.shape == (9, 4, 4, 1)
  with pytest.raises(UserError, match='image_channels is 2, but image files'):
    catalog.load(f'folder:{images}', image_size=4, channels=2)


def test_the_second_start_decodes_nothing(images, monkeypatch):
  name = f'folder:{images}'
  first = catalog.load(name, image_size=8)
  monkeypatch.setattr(folder, 'blocks', None)
  second = catalog.load(name, image_size=8)
  np.testing.assert_array_equal(first.images, second.images)
  assert first.digest == second.digest
  # Moved: the same files.
  moved = images.rename(images.with_name('moved'))
  assert catalog.load(f'folder:{moved}', image_size=8).digest == first.digest
  # Other settings and other files are decoded.
  for settings in ({'image_size': 4}, {'image_size': 8, 'resize': 'pad'}):
    with pytest.raises(TypeError):
      catalog.load(f'folder:{moved}', **settings)
  save(moved / 'a' / '0_x.png', 99)
  with pytest.raises(TypeError):
    catalog.load(f'folder:{moved}', image_size=8)


def test_a_start_that_was_killed_leaves_nothing_half_done(images, monkeypatch):
  blocks = folder.blocks

  def dies(*args, **kwargs):
    yield next(blocks(*args, **kwargs))
    raise KeyboardInterrupt

  name = f'folder:{images}'
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(folder, 'blocks', dies)
    catalog.load(name, image_size=6)
  assert len(catalog.load(name, image_size=6).images) == 9


def test_a_disk_that_is_too_small_is_told_before(images, monkeypatch):
  monkeypatch.setattr(
      store.shutil, 'disk_usage', lambda path: type('', (), {'free': 500})
  )
  with pytest.raises(UserError, match='set XDG_CACHE_HOME to a folder on a'):
    catalog.load(f'folder:{images}', image_size=7)


def test_a_set_that_is_larger_than_the_memory(tmp_path):
  size = 4 * os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  np.save(tmp_path / 'labels.npy', np.zeros(1, np.int32))
  (tmp_path / 'facts.json').write_text('{"digest": "", "broken": 0}')
  with open(tmp_path / 'images', 'wb') as f:
    f.truncate(size)  # Without a block on disk.
  stored = store._read(str(tmp_path), (size, 1, 1))
  assert stored.images.shape == (1, size, 1, 1) and stored.images[0, -1] == 0
  # The dataset does not copy it either.
  tensor = source._as_tensor(stored.images)
  assert tensor.shape == stored.images.shape


def damage(root):
  """Breaks a folder in many ways; returns the names of what is broken."""
  noise = np.random.default_rng(0).integers(0, 256, [40, 50, 3], np.uint8)
  Image.fromarray(noise).save(root / 'whole.png')
  Image.fromarray(noise).save(root / 'whole.jpg')
  Image.fromarray(noise).save(root / 'whole.webp', lossless=True)
  png, jpg, webp = (
      (root / f'whole.{kind}').read_bytes() for kind in ('png', 'jpg', 'webp')
  )
  nan = np.full([4, 4], np.nan, np.float32)
  Image.fromarray(nan).save(root / 'nan.tiff')
  Image.fromarray(nan + 7).save(root / 'nan2.tiff')
  Image.fromarray(np.full([4, 4], 7, np.float32)).save(root / 'seven.tiff')
  (root / 'empty.png').touch()
  (root / 'text.jpg').write_text('<html>404</html>')
  (root / 'cut.png').write_bytes(png[:2000])
  (root / 'cut.jpg').write_bytes(jpg[:800])
  (root / 'cut.webp').write_bytes(webp[:900])
  (root / 'header.png').write_bytes(png[:8])
  (root / 'header.jpg').write_bytes(jpg[:4])
  (root / 'crc.png').write_bytes(png[:40] + b'\0\0\0\0' + png[44:])
  (root / 'zeros.bmp').write_bytes(bytes(100))
  os.symlink(root / 'nowhere', root / 'link.png')
  (root / 'folder.png').mkdir()  # Not a file: not listed.
  # 40,000 x 40,000 pixels in a few bytes: a decompression bomb.
  bomb = bytearray(png)
  bomb[16:24] = (40000).to_bytes(4, 'big') * 2
  bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, 'big')
  (root / 'bomb.png').write_bytes(bomb)
  return {
      'nan.tiff', 'nan2.tiff', 'seven.tiff', 'empty.png', 'text.jpg', 'cut.png',
      'cut.jpg', 'cut.webp', 'header.png', 'header.jpg', 'crc.png', 'zeros.bmp',
      'link.png', 'bomb.png',
  }  # fmt: skip


def test_each_kind_of_damage_is_named(tmp_path):
  broken = damage(tmp_path)
  # A name that no terminal can show.
  os.rename(tmp_path / 'whole.png', os.fsencode(tmp_path) + b'/\xff.png')
  with open(os.fsencode(tmp_path) + b'/\xfe.png', 'wb'):
    broken.add('\ufffd.png')
  done = run_program(
      'ddpm.data', 'check', f'--data=folder:{tmp_path}',
      f'--sheet={tmp_path}/sheet.out',
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert 'Traceback' not in done.stderr
  assert f'broken: {len(broken)}\n' in done.stdout
  for name in broken:
    assert f'\n  {name}: ' in done.stdout
  for reason in (
      'empty.png: the file is empty',
      'bomb.png: it has more than 178,956,970 pixels',
      'seven.tiff: its floats are from 7 to 7, expected 0 to 1',
      'link.png: No such file',
  ):
    assert reason in done.stdout
  assert '18 image files' in done.stdout
  assert '--config.data.on_error=skip' in done.stdout


def test_broken_images_stop_or_are_left_out(tmp_path, caplog):
  damage(tmp_path)
  name = f'folder:{tmp_path}'
  message = r'bomb\.png is broken: it has more .* data\.on_error=skip leaves'
  with pytest.raises(UserError, match=message):
    catalog.load(name, image_size=8)
  for _ in range(2):
    loaded = catalog.load(name, image_size=8, on_error='skip')
    assert len(loaded.images) == 3
    assert '14 of 17 images are broken and left out' in caplog.messages[-1]
    caplog.clear()
  for whole in tmp_path.glob('whole.*'):
    whole.unlink()
  with pytest.raises(UserError, match='none of its 14 images can be decoded'):
    catalog.load(name, image_size=8, on_error='skip')


def test_what_check_says(images, tmp_path):
  save(images / 'b' / 'copy.png', 0)
  save(images / 'b' / 'large.jpg', 200, size=(90, 70), quality=95)
  save(images / 'b' / 'smaller.png', 200, size=(90, 70), mode='RGBA')
  report = check.check(
      str(images), image_size=None, labels='folders', rule='center_crop',
      sheet=str(tmp_path / 'sheet.png'),
  )  # fmt: skip
  assert not report.broken
  text = '\n'.join(report.lines)
  for line in (
      '12 image files, ',
      'sizes (width x height): 10 x 8 to 90 x 70, median 10 x 8, 2 different',
      'kinds: PNG RGB 10, JPEG RGB 1, PNG RGBA 1',
      'smaller than 32 x 32: 10, which are enlarged',
      'classes: 3: a 3, b 6, ü 3',
      'broken: none',
      'the same file: 1\n  b/0_x.png, b/copy.png\n',
      'b/large.jpg, b/smaller.png',
      'training at 32 x 32 x 3: 0.0 MiB decoded; an epoch is 1 steps',
      f"to train: python -m ddpm.main '--config=configs/folder.py:{images}'",
  ):
    assert line in text
  with Image.open(tmp_path / 'sheet.png') as sheet:
    assert sheet.size == (8 * 130 + 2, 2 * 130 + 2)


def test_wrong_commands_are_one_line():
  for args, message in [
      ((), 'expected a command first, one of: check'),
      (('chek',), 'expected a command first, one of: check'),
      (('check', 'x'), "unknown argument 'x'"),
      (('check',), '--data is missing: pass folder:PATH'),
      (('check', '--data=mnist'), "--data is 'mnist', expected folder:PATH"),
      (('check', '--data=folder:/nowhere'), '/nowhere is not a folder'),
  ]:
    done = run_program('ddpm.data', *args)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith(f'ddpm: error: {message}')


def test_a_run_on_a_folder_and_its_data_that_changes(images, tmp_path):
  """Trained on images that are not square; moved; refused on other images."""
  flags = [
      *TINY_WITHOUT_XLA[1:], f'--workdir={tmp_path / "run"}',
      '--config.data.image_size=(16,24)', '--config.train.batch_size=4',
      '--config.model.num_classes=3',
  ]  # fmt: skip

  def train(path, steps):
    return run_program(
        'ddpm.main', f'--config=configs/folder.py:{path}', *flags,
        f'--config.train.num_steps={steps}', XDG_CACHE_HOME=str(tmp_path),
    )  # fmt: skip

  done = train(images, 2)
  assert done.returncode == 0, done.stderr
  with Image.open(tmp_path / 'run/grid.png') as grid:
    assert grid.size == (8 * 26 + 2, 8 * 18 + 2)
  done = run_program(
      'ddpm.sample', f'--workdir={tmp_path / "run"}', '--seeds=0-3',
      f'--outdir={tmp_path / "out"}', f'--init_image={images}/a/0_x.png',
      '--strength=0.5', '--sampler=ddim', '--steps=4',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  drawn = np.load(tmp_path / 'out/samples.npz')
  assert drawn['images'].shape == (4, 16, 24, 3)
  moved = images.rename(images.with_name('moved'))
  done = train(moved, 4)
  assert done.returncode == 0, done.stderr
  assert 'resuming at step 2' in done.stderr
  save(moved / 'a' / 'new.png', 5)
  done = train(moved, 6)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == (
      f'ddpm: error: {tmp_path}/run was trained on 9 images of folder:{moved},'
      f' but folder:{moved} has now 10: bring back those, or use another'
      ' workdir'
  )


def test_a_config_for_a_folder_takes_what_it_finds(images, tmp_path):
  from configs import folder as folder_config

  config = folder_config.get_config(str(images))
  assert config.data.image_size == 32 and config.model.image_channels == 3
  assert config.model.num_classes == 3
  for i in range(3):
    save(tmp_path / 'grey' / f'{i}.png', i, size=(70, 90), mode='L')
  config = folder_config.get_config(str(tmp_path / 'grey'))
  assert config.data.image_size == 64 and config.model.image_channels == 1
  assert config.model.num_classes == 0


def test_random_crops_are_a_function_of_step_and_position(images):
  source = catalog.load(f'folder:{images}', image_size=(10, 15))
  assert resize.with_margin(8, 12) == (10, 15)

  def blocks(first_block, steps, workers=1, worker=0):
    dataset = pipeline.batches(
        source, seed=1, batch_size=4, shuffle_rounds=8, first_block=first_block,
        steps_per_block=steps, part_size=(8, 12),
        context=tf.distribute.InputContext(workers, worker, 2),
    )  # fmt: skip
    return list(dataset.take(8 // steps).as_numpy_iterator())

  whole = blocks(0, 4)
  assert whole[0]['image'].shape == (4, 2, 8, 12, 3)
  assert set(whole[0]) == {'image', 'label', 'position'}
  np.testing.assert_array_equal(
      blocks(1, 2)[0]['image'], whole[0]['image'][2:]
  )
  np.testing.assert_array_equal(
      blocks(0, 4, workers=2, worker=1)[0]['image'], whole[1]['image']
  )


def test_random_parts_reach_all_sides():
  image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
  part = tf.function(lambda key: resize.random_part(image, key, 8, 8))
  parts = np.stack([
      part(rng.fold_in(rng.key(0), i)).numpy()[..., 0] for i in range(300)
  ])
  assert parts.shape == (300, 8, 8) and parts.dtype == np.uint8
  corners = {0: (0, 0), 9: (0, -1), 90: (-1, 0), 99: (-1, -1)}
  for value, corner in corners.items():
    assert (np.abs(parts[:, *corner].astype(int) - value) < 3).any()
  whole = resize.fit(image, 8, 8, 'center_crop').numpy()[..., 0]
  same = (parts == whole).all(axis=(1, 2)).mean()
  assert 0.2 < same < 0.5  # A third are of the full size.
