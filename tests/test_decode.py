"""Image files of many kinds become arrays of one kind."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from ddpm.data import decode
from ddpm.data import resize

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def encode(image, kind='png', **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def grey(dtype, scale=1):
  return Image.fromarray((RAMP.astype(np.float64) * scale).astype(dtype))


def rgba():
  """Red, and transparent in its right half."""
  pixels = np.zeros([4, 6, 4], np.uint8)
  pixels[..., 0] = 200
  pixels[:, :3, 3] = 255
  return Image.fromarray(pixels)


@pytest.mark.parametrize(
    'kind', ['png', 'bmp', 'gif', 'tiff', 'webp', 'ppm']
)
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_formats(kind, channels):
  options = {'lossless': True} if kind == 'webp' else {}
  image = decode.decode(encode(grey(np.uint8), kind, **options), channels)
  assert image.shape == (4, 6, channels) and image.dtype == np.uint8
  np.testing.assert_array_equal(image[..., 0], RAMP)
  if channels == 4:
    assert (image[..., 3] == 255).all()


def test_16_bits_and_floats_become_8():
  for image, kind in [
      (grey(np.uint16, 257), 'png'),
      (grey(np.int32, 257), 'tiff'),
      (grey(np.float32, 1 / 255), 'tiff'),
  ]:
    np.testing.assert_array_equal(
        decode.decode(encode(image, kind), 1)[..., 0], RAMP
    )
  # Rounded, not cut off.
  halves = Image.fromarray(np.full([2, 2], 257 * 7 + 200, np.uint16))
  assert (decode.decode(encode(halves), 1) == 8).all()


@pytest.mark.parametrize('wrong', [np.nan, np.inf, -0.1, 3.0])
def test_floats_beyond_0_to_1_are_refused(wrong):
  pixels = np.zeros([2, 2], np.float32)
  pixels[1, 1] = wrong
  data = encode(Image.fromarray(pixels), 'tiff')
  with pytest.raises(decode.BrokenImage, match='expected 0 to 1'):
    decode.decode(data, 3)


def test_what_is_transparent_is_white():
  data = encode(rgba())
  image = decode.decode(data, 3)
  assert (image[:, :3] == [200, 0, 0]).all() and (image[:, 3:] == 255).all()
  np.testing.assert_array_equal(decode.decode(data, 4), np.asarray(rgba()))
  palette = rgba().quantize(4)
  assert palette.mode == 'P'
  np.testing.assert_array_equal(decode.decode(encode(palette), 3), image)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'CMYK'])
def test_modes(mode):
  kind = 'tiff' if mode == 'CMYK' else 'png'
  black = Image.new('RGB', (6, 4)).convert(mode)
  image = decode.decode(encode(black, kind), 3)
  assert image.shape == (4, 6, 3) and (image == 0).all()


def test_the_files_own_channels():
  assert decode.decode(encode(grey(np.uint8)), None).shape[-1] == 1
  assert decode.decode(encode(grey(np.uint8).convert('P')), None).shape[-1] == 3
  assert decode.decode(encode(rgba()), None).shape[-1] == 4


def test_the_way_up_and_the_first_frame():
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by 90 degrees.
  image = decode.decode(encode(grey(np.uint8), exif=exif), 1)
  np.testing.assert_array_equal(image[..., 0], np.rot90(RAMP, -1))
  frames = [grey(np.uint8), Image.new('L', (6, 4), 255)]
  film = encode(frames[0], 'gif', save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(decode.decode(film, 1)[..., 0], RAMP)


def photo(mode, size=(37, 22)):
  noise = np.random.default_rng(0).integers(0, 256, [5, 6, 3], np.uint8)
  image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
  return image.convert(mode)


def oriented(orientation, mode='RGB', **options):
  """A JPEG file with an orientation."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encode(photo(mode), 'jpeg', quality=80, exif=exif, **options)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('mode', ['L', 'RGB'])
@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:0'])
def test_tensorflow_decodes_jpeg_to_the_same_pixels(
    mode, orientation, subsampling
):
  data = oriented(orientation, mode, subsampling=subsampling)
  for channels in (1, 3):
    plain = decode.is_plain(data, channels)
    if (mode, channels) == ('RGB', 1):
      assert plain == 0  # TensorFlow takes another luma.
      continue
    assert plain == orientation
    np.testing.assert_array_equal(
        decode.decode_plain(data, tf.constant(plain), channels),
        decode.decode(data, channels),
    )


def test_tensorflow_decodes_png_to_the_same_pixels():
  for mode in ('L', 'RGB'):
    data = encode(photo(mode))
    assert decode.is_plain(data, 3) == 1
    np.testing.assert_array_equal(
        decode.decode_plain(data, tf.constant(1), 3), decode.decode(data, 3)
    )


@pytest.mark.parametrize('kind', ['bmp', 'webp', 'gif', 'tiff'])
def test_what_tensorflow_decodes_otherwise_is_not_plain(kind):
  assert decode.is_plain(encode(photo('RGB'), kind), 3) == 0


def test_modes_that_tensorflow_decodes_otherwise_are_not_plain():
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = encode(photo('RGB'), exif=exif)
  assert decode.decode(turned, 3).shape == (37, 22, 3)
  files = [
      turned,
      *(encode(photo('RGB').convert(m)) for m in ('P', '1', 'LA', 'RGBA')),
      encode(photo('RGB').convert('CMYK'), 'jpeg'),
      encode(grey(np.uint16, 257)),
      encode(photo('RGB'), transparency=(0, 0, 0)),
      *map(oriented, (0, 9)),
      b'',
      b'no image',
  ]
  assert [decode.is_plain(data, 3) for data in files] == [0] * len(files)
  assert decode.is_plain(encode(photo('RGB')), 4) == 0


def test_to_png_keeps_pixels():
  for channels in (1, 3, 4):
    image = np.random.default_rng(0).integers(0, 256, [5, 7, channels])
    image = image.astype(np.uint8)
    np.testing.assert_array_equal(
        decode.decode_plain(decode.to_png(image), tf.constant(1), channels),
        image,
    )


def test_broken_files_are_told_apart(monkeypatch):
  noise = np.random.default_rng(0).integers(0, 256, [64, 64], np.uint8)
  whole = encode(Image.fromarray(noise))
  for data, message in [
      (b'', 'the file is empty'),
      (b'a letter', 'cannot identify image file$'),
      (whole[:900], 'truncated'),
      (whole[:12], 'cannot identify'),
      (encode(Image.fromarray(noise), 'jpeg')[:700], 'truncated'),
  ]:
    with pytest.raises(decode.BrokenImage, match=message):
      decode.decode(data, 3)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
  with pytest.raises(decode.BrokenImage, match='more than 4,000 pixels'):
    decode.decode(whole, 3)


@pytest.mark.parametrize('rule', resize.RULES)
@pytest.mark.parametrize('shape', [(4, 4, 3), (4, 6, 1)])
def test_what_has_the_size_is_left_as_it_is(rule, shape):
  image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  np.testing.assert_array_equal(
      resize.fit(image, *shape[:2], rule).numpy(), image
  )


def test_rules():
  image = np.zeros([8, 16, 1], np.uint8)
  image[:, 4:12] = 240
  crop, same_crop, stretch, pad = [
      resize.fit(image, 4, 4, rule).numpy()[..., 0] for rule in resize.RULES
  ]
  assert (crop == 240).all() and (same_crop == 240).all()
  # Pillow's filter is the same, with other rounding.
  expected = Image.fromarray(image[..., 0]).resize((4, 4), Image.BILINEAR)
  np.testing.assert_allclose(stretch, np.asarray(expected), atol=1)
  assert (pad[[0, -1]] == 0).all() and (pad[1:3, 1:3] > 200).all()
  tall = resize.fit(image.transpose(1, 0, 2), 4, 8, 'center_crop').numpy()
  assert tall.shape == (4, 8, 1) and (tall == 240).all()


def test_downsampling_does_not_alias():
  """A fine checkerboard becomes grey, not black or white."""
  image = np.indices([64, 64]).sum(0)[..., None] % 2 * 255
  small = resize.fit(tf.cast(image, tf.uint8), 8, 8, 'center_crop').numpy()
  assert small.min() > 110 and small.max() < 145
