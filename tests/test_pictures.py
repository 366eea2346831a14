"""Pictures of users, and films for them."""

import functools
import io

import numpy as np
from PIL import Image
import pytest

from ddpm.runtime import png
from ddpm.runtime.errors import UserError
from ddpm.sampling import pictures


def save(path, pixels, **kwargs):
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **kwargs)
  return str(path)


def test_a_picture_of_the_models_size_is_read_as_it_is(tmp_path):
  pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
  path = save(tmp_path / 'a.png', pixels)
  read = functools.partial(pictures.read, rule='center_crop')
  np.testing.assert_array_equal(read(path, (4, 4, 3)), pixels)
  grey = read(path, (4, 4, 1))
  assert grey.shape == (4, 4, 1) and grey.dtype == np.uint8
  colour = read(save(tmp_path / 'b.png', pixels[..., 0]), (4, 4, 3))
  np.testing.assert_array_equal(colour, np.repeat(pixels[..., :1], 3, -1))


def test_more_than_8_bits_are_read_as_training_data_is(tmp_path):
  ramp = np.arange(0, 256, 17).reshape(4, 4)
  files = {
      '16.png': (257 * ramp).astype(np.uint16),
      '32.tiff': (257 * ramp).astype(np.int32),
      'float.tiff': (ramp / 255).astype(np.float32),
  }
  for name, pixels in files.items():
    path = str(tmp_path / name)
    Image.fromarray(pixels).save(path)
    for channels in (1, 3):
      np.testing.assert_array_equal(
          pictures.read(path, (4, 4, channels), 'center_crop'),
          np.repeat(ramp[..., None], channels, -1),
      )
    mask = pictures.read_mask(path, path, (4, 4, 1), 'center_crop')
    np.testing.assert_array_equal(mask[..., 0], ramp >= 128)
  Image.fromarray(np.full([4, 4], 7.0, np.float32)).save(path)
  with pytest.raises(UserError, match='floats are from 7 to 7, expected 0 to'):
    pictures.read(path, (4, 4, 1), 'center_crop')


def test_another_size_is_cropped_to_its_central_square(tmp_path):
  pixels = np.zeros([8, 16], np.uint8)
  pixels[:, 3:13] = 255
  path = save(tmp_path / 'a.png', pixels)
  # But for the edges, which a good filter looks beyond.
  assert pictures.read(path, (4, 4, 1), 'center_crop').min() > 240


def test_the_way_up_that_a_camera_wrote_down(tmp_path):
  pixels = np.zeros([4, 4], np.uint8)
  pixels[0] = 200
  exif = Image.Exif()
  exif[0x0112] = 3  # It was held upside down.
  path = save(tmp_path / 'a.png', pixels, exif=exif)
  np.testing.assert_array_equal(
      pictures.read(path, (4, 4, 1), 'center_crop')[..., 0], pixels[::-1]
  )


def test_a_mask_is_white_where_to_paint(tmp_path):
  pixels = np.zeros([8, 8], np.uint8)
  pixels[:4] = 255
  picture = save(tmp_path / 'a.png', np.zeros([8, 8, 3]))
  mask = pictures.read_mask(
      save(tmp_path / 'mask.png', pixels), picture, (4, 4, 3), 'center_crop'
  )
  assert mask.shape == (4, 4, 1) and mask.dtype == bool
  np.testing.assert_array_equal(mask[..., 0], pixels[::2, ::2] > 0)


def test_refuses_pictures(tmp_path):
  gone = str(tmp_path / 'gone.png')
  message = r'gone.png cannot be read as a picture: No such file'
  with pytest.raises(UserError, match=message):
    pictures.read(gone, (4, 4, 1), 'center_crop')
  file = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, [64, 64])
  Image.fromarray(noise.astype(np.uint8)).save(file, 'png')
  for data in (b'', b'a letter', file.getvalue()[:900]):
    path = tmp_path / 'a.png'
    path.write_bytes(data)
    with pytest.raises(UserError, match=r'a.png cannot be read as a picture'):
      pictures.read(str(path), (4, 4, 1), 'center_crop')
  with pytest.raises(UserError, match='the model draws 2 channels'):
    pictures.read(save(tmp_path / 'b.png', noise), (4, 4, 2), 'center_crop')


def test_refuses_masks(tmp_path):
  picture = save(tmp_path / 'a.png', np.zeros([8, 8, 3]))
  mask = save(tmp_path / 'mask.png', np.full([4, 6], 255))
  message = r'mask.png is 6 x 4 pixels, but .*a.png is 8 x 8: a mask needs'
  with pytest.raises(UserError, match=message):
    pictures.read_mask(mask, picture, (4, 4, 3), 'stretch')
  mask = save(tmp_path / 'mask.png', np.zeros([8, 8]))
  with pytest.raises(UserError, match=r'mask.png has no white'):
    pictures.read_mask(mask, picture, (4, 4, 3), 'stretch')


@pytest.mark.parametrize('channels', [1, 3])
def test_a_film_shows_its_end_longer(tmp_path, channels):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, [4, 6, 5, channels], np.uint8)
  path = tmp_path / 'animation.png'
  pictures.write_animation(str(path), list(frames))
  with Image.open(path) as film:
    assert film.n_frames == 4 and film.info['loop'] == 0
    for k, frame in enumerate(frames):
      film.seek(k)
      np.testing.assert_array_equal(np.asarray(film), frame.squeeze())
      assert film.info['duration'] == (2000 if k == 3 else 1000)


def test_a_large_film_is_shrunk(tmp_path):
  frames = np.zeros([2, 1500, 900, 1], np.uint8)
  pictures.write_animation(str(tmp_path / 'animation.png'), list(frames))
  with Image.open(tmp_path / 'animation.png') as film:
    assert film.size == (450, 750)


def test_a_film_is_as_large_as_its_grid(tmp_path):
  images = np.zeros([5, 8, 8, 3], np.uint8)
  pictures.write_animation(str(tmp_path / 'a.png'), [png.grid(images)] * 2)
  with Image.open(tmp_path / 'a.png') as film:
    assert film.size == (32, 22)
