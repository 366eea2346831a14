"""Sets of images: read in stretches, named when they are not right."""

import os

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from ddpm.data import source as source_lib
from ddpm.metrics import sources
from ddpm.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, [10, 6, 5, 3], np.uint8)


def write_png(path, image):
  path.write_bytes(tf.io.encode_png(image).numpy())


@pytest.fixture
def npz(tmp_path):
  def write(**arrays):
    np.savez_compressed(tmp_path / 'samples.npz', **arrays)
    return str(tmp_path / 'samples.npz')

  return write


@pytest.mark.parametrize('name', ['images', 'arr_0'])
def test_npz_is_read_in_any_order(npz, name):
  source = sources.samples(npz(**{name: IMAGES, 'labels': np.arange(10)}))
  assert len(source) == 10 and tuple(source.shape) == (6, 5, 3)
  for start, stop in [(0, 3), (5, 9), (2, 4), (9, 10)]:
    np.testing.assert_array_equal(source.read(start, stop), IMAGES[start:stop])
  np.testing.assert_array_equal(source.labels, np.arange(10))


def test_folder_is_read_in_the_order_of_names(tmp_path):
  for i, image in enumerate(IMAGES):
    folder = tmp_path / f'class{i % 2}'
    folder.mkdir(exist_ok=True)
    write_png(folder / f'{i}.png', image)
  (tmp_path / 'notes.txt').write_text('not an image')
  source = sources.samples(str(tmp_path))
  assert len(source) == 10 and source.labels is None
  expected = np.concatenate([IMAGES[::2], IMAGES[1::2]])
  np.testing.assert_array_equal(source.read(0, 10), expected)
  np.testing.assert_array_equal(source.read(4, 6), expected[4:6])


def test_guided_diffusions_npz_has_its_labels(npz):
  source = sources.samples(npz(arr_0=IMAGES, arr_1=np.arange(10)[::-1]))
  np.testing.assert_array_equal(source.labels, np.arange(10)[::-1])
  assert source.labels.dtype == np.int32


def test_what_of_a_file_is_left_out_is_said(npz, caplog):
  sources.samples(npz(images=IMAGES, labels=np.arange(10), seeds=np.arange(10)))
  assert not caplog.records
  sources.samples(npz(arr_0=IMAGES, arr_1=np.arange(10), arr_2=[1.0], a=[2]))
  assert 'samples.npz: leaving out a, arr_2' in caplog.text


def test_what_of_a_folder_is_left_out_is_said(tmp_path, caplog):
  for i, image in enumerate(IMAGES):
    write_png(tmp_path / f'{i}.png', image)
  image = Image.fromarray(IMAGES[0])
  image.save(tmp_path / 'a.webp', lossless=True)
  assert len(sources.samples(str(tmp_path))) == 11
  assert not caplog.records
  for name in ('a.tga', 'b.tga', 'notes.txt', 'README', '.hidden'):
    (tmp_path / name).write_bytes(b'')
  for name in ('grid.png', 'animation.png'):
    write_png(tmp_path / name, np.zeros([9, 9, 3], np.uint8))
  source = sources.samples(str(tmp_path))
  np.testing.assert_array_equal(source.read(10, 11)[0], IMAGES[0])
  assert len(source) == 11 and source.shape == (6, 5, 3)
  assert caplog.messages == [
      f'{tmp_path}: leaving out 2 .tga, 1 without an ending, 1 .txt',
      f'{tmp_path}: leaving out animation.png, grid.png, which ddpm.sample'
      ' writes beside its images',
  ]


def test_the_folder_of_a_job_is_its_samples(npz, tmp_path):
  path = npz(images=IMAGES, labels=np.arange(10))
  write_png(tmp_path / 'grid.png', np.zeros([9, 9, 3], np.uint8))
  source = sources.samples(str(tmp_path))
  assert source.identity == sources.samples(path).identity
  os.remove(path)
  with pytest.raises(UserError, match=r'has no images but grid\.png'):
    sources.samples(str(tmp_path))


def test_which_are_chosen_depends_on_the_set_alone(npz):
  images = np.random.default_rng(1).integers(0, 256, [1200, 2, 2, 1], np.uint8)
  labels = np.arange(1200)
  order = np.random.default_rng(2).permutation(1200)
  found = []
  for i in (labels, order, order[::-1]):
    source = sources.samples(npz(images=images[i], labels=labels[i]))
    chosen = sources.Chosen(source, 700)
    assert len(chosen) == 700 and chosen.shape == (2, 2, 1)
    parts = [chosen.read(0, 600), chosen.read(600, 700)]
    np.testing.assert_array_equal(
        np.concatenate(parts), images[chosen.labels]
    )
    found.append((set(chosen.labels.tolist()), chosen.identity))
  assert found[0][0] == found[1][0] == found[2][0]
  assert len({identity for _, identity in found}) == 3
  # As if at random: as many of the first half as of the second.
  assert 250 < sum(label < 600 for label in found[0][0]) < 450
  assert sources.Chosen(source, 699).identity != found[2][1]


def test_identity_is_that_of_the_images(npz, tmp_path):
  identity = sources.samples(npz(images=IMAGES)).identity
  assert sources.samples(npz(images=IMAGES[::-1])).identity != identity
  other = IMAGES.copy()
  other[3, 1, 2, 0] ^= 1
  same, again, changed = (
      sources.Ordered(
          source_lib.Images(images, np.zeros(10, np.int32), 0), np.arange(10)
      ).identity
      for images in (IMAGES, IMAGES.copy(), other)
  )
  assert same == again != changed


@pytest.mark.parametrize(
    'images, message',
    [
        (IMAGES / 255.0, 'images are float64, expected uint8'),
        (np.full([3, 4, 4, 1], np.nan, 'f4'), '3 images have NaN pixels'),
        (IMAGES[0], r'shape \(6, 5, 3\), expected \[N, H, W, C\]'),
        (IMAGES[:0], 'has no images'),
        (IMAGES[..., :2], r'shape \(10, 6, 5, 2\), expected \[N, H, W, C\]'),
    ],
)
def test_npz_that_is_refused(npz, images, message):
  with pytest.raises(UserError, match=message):
    sources.samples(npz(images=images))


@pytest.mark.parametrize(
    'labels', [np.arange(9), np.arange(10) / 2, np.eye(10, dtype=int), 3]
)
@pytest.mark.parametrize('names', [('images', 'labels'), ('arr_0', 'arr_1')])
def test_labels_that_are_refused(npz, names, labels):
  path = npz(**dict(zip(names, (IMAGES, labels))))
  with pytest.raises(UserError, match=f'{names[1]} is .*, expected integers, '):
    sources.samples(path)


def test_files_that_are_refused(npz, tmp_path):
  with pytest.raises(UserError, match=r'no array images .* it has: pictures'):
    sources.samples(npz(pictures=IMAGES))
  with pytest.raises(UserError, match=r'nothing.npz does not exist'):
    sources.samples(str(tmp_path / 'nothing.npz'))
  (tmp_path / 'text.npz').write_text('no archive')
  with pytest.raises(UserError, match=r'text.npz is not an .npz file'):
    sources.samples(str(tmp_path / 'text.npz'))
  whole = (tmp_path / 'samples.npz').read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r'cut.npz is not an .npz file'):
    sources.samples(str(tmp_path / 'cut.npz'))
  np.savez_compressed(tmp_path / 'squeezed.npz', images=IMAGES, labels=[3] * 10)
  squeezed = (tmp_path / 'squeezed.npz').read_bytes()
  middle = len(squeezed) // 4
  (tmp_path / 'squeezed.npz').write_bytes(
      squeezed[:middle] + bytes(8) + squeezed[middle + 8 :]
  )
  with pytest.raises(UserError, match=r'squeezed.npz is (damaged|not an)'):
    sources.samples(str(tmp_path / 'squeezed.npz')).read(0, len(IMAGES))


def test_folders_that_are_refused(tmp_path):
  with pytest.raises(UserError, match='has no images: expected files that end'):
    sources.samples(str(tmp_path))
  write_png(tmp_path / 'a.png', IMAGES[0])
  write_png(tmp_path / 'b.png', IMAGES[0, :4])
  with pytest.raises(UserError, match=r'b.png is 4 x 5 x 3, but .*a.png is 6'):
    sources.samples(str(tmp_path)).read(0, 2)
  (tmp_path / 'b.png').write_bytes(b'not a PNG')
  with pytest.raises(UserError, match=r'b.png is not an image'):
    sources.samples(str(tmp_path)).read(0, 2)
  write_png(tmp_path / 'a.png', np.zeros([4, 4, 4], np.uint8))
  with pytest.raises(UserError, match=r'a.png has 4 channels, expected 1'):
    sources.samples(str(tmp_path))
