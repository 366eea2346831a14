"""Blocks of rows: .npz files that NumPy reads, and those that it wrote."""

import zipfile

import numpy as np
import pytest

from ddpm.runtime import npz
from ddpm.runtime.errors import UserError

ROWS = 512


@pytest.mark.parametrize('rows', [1, ROWS, ROWS + 3])
def test_a_file_of_blocks_is_one_of_arrays(tmp_path, rows):
  images = np.arange(rows * 6, dtype=np.uint8).reshape(rows, 3, 2, 1)
  labels = np.arange(rows, dtype=np.int32)
  path = str(tmp_path / 'samples.npz')
  # One after the other: an array that is not contiguous among them.
  blocks = (np.asfortranarray(images[i : i + 100]) for i in range(0, rows, 100))
  npz.write_blocks(path, {'images': blocks, 'labels': [labels]}, rows=rows)
  assert [p.name for p in tmp_path.iterdir()] == ['samples.npz']
  with np.load(path) as arrays:
    assert set(arrays) == {'images', 'labels'}
    for name, expected in {'images': images, 'labels': labels}.items():
      assert arrays[name].dtype == expected.dtype
      np.testing.assert_array_equal(arrays[name], expected)
  read = list(npz.read_blocks(path, 'images', rows=512))
  assert len(read) == -(-rows // ROWS)
  np.testing.assert_array_equal(np.concatenate(read), images)


def test_a_damaged_file_of_blocks_is_named(tmp_path):
  path = tmp_path / 'samples.npz'
  random = np.random.default_rng(0).integers(0, 256, [99, 9], np.uint8)
  npz.write_blocks(str(path), {'images': [random]}, rows=99)
  data = path.read_bytes()
  for damaged in (data[:50], data[:400] + b'damage' + data[406:]):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r'samples.npz is damaged: delete it'):
      list(npz.read_blocks(str(path), 'images', rows=512))


def test_a_damaged_file_of_arrays_is_named(tmp_path):
  path = tmp_path / 'rows.npz'
  random = np.random.default_rng(0).integers(0, 256, [99, 9], np.uint8)
  npz.write(str(path), {'rows': random})
  np.testing.assert_array_equal(npz.read(str(path))['rows'], random)
  data = path.read_bytes()
  for damaged in (b'', data[:50], data[:400] + b'damage' + data[406:]):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r'rows.npz is damaged: delete it'):
      npz.read(str(path))
  with pytest.raises(UserError, match=r'other.npz is damaged'):
    npz.read(str(tmp_path / 'other.npz'))


@pytest.mark.parametrize('version', [(1, 0), (2, 0)])
def test_an_array_is_read_in_any_order(tmp_path, version):
  rows = np.arange(60, dtype='<f4').reshape(10, 3, 2)
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    with archive.open('rows.npy', 'w') as f:
      np.lib.format.write_array(f, rows, version=version)
    with archive.open('turned.npy', 'w') as f:
      np.lib.format.write_array(f, np.asfortranarray(rows))
  with zipfile.ZipFile(tmp_path / 'a.npz') as archive:
    array = npz.ArrayReader(archive, 'rows')
    assert array.shape == (10, 3, 2) and array.dtype == np.float32
    for start, stop in [(0, 3), (5, 9), (2, 4), (8, 12)]:
      np.testing.assert_array_equal(array.read(start, stop), rows[start:stop])
    with pytest.raises(ValueError, match='Fortran order'):
      npz.ArrayReader(archive, 'turned')
