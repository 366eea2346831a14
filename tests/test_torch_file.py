"""PyTorch's files, of both formats, and files that are something else."""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from ddpm.metrics.extractors import torch_file
from ddpm.runtime.errors import UserError

FOLDER = pathlib.Path(__file__).parent / 'oracles'
FORMATS = ('zip', 'legacy')


@pytest.mark.parametrize('name', FORMATS)
def test_reads_what_pytorch_wrote(name):
  """oracles/torch_file.py says what it wrote."""
  state = torch_file.read(FOLDER / f'{name}.pth')
  expected = {
      'conv.weight': np.float32(np.arange(6).reshape(3, 2, 1, 1) / 4),
      'bn.weight': np.ones(3, np.float32),
      'bn.bias': np.zeros(3, np.float32),
      'bn.running_mean': np.zeros(3, np.float32),
      'bn.running_var': np.ones(3, np.float32),
      'bn.num_batches_tracked': np.int64(0),
      'view': np.float64([[1, 4], [2, 5], [3, 6]]),
      'numbers': np.arange(10.0),
      'half': np.float16([0.5, -2]),
      'mask': np.array([True, False]),
      'empty': np.zeros([0, 2], np.float32),
      'parameter': np.ones(2, np.float32),
  }
  assert list(state) == list(expected)
  for key, array in expected.items():
    assert state[key].dtype == array.dtype
    np.testing.assert_array_equal(state[key], array, strict=True)


@pytest.mark.parametrize('name', FORMATS)
def test_no_part_of_a_file_passes_for_the_whole(name, tmp_path):
  data = (FOLDER / f'{name}.pth').read_bytes()
  for size in range(0, len(data), 7):
    path = tmp_path / 'short.pth'
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match='not a complete PyTorch') as e:
      torch_file.read(path)
    assert '\n' not in str(e.value)


class _Calls:
  """Unpickles as what a function returns."""

  def __init__(self, function, *args):
    self.reduced = function, args

  def __reduce__(self):
    return self.reduced


def _zip(value, **files):
  """A file in the zip format whose pickle is of this value."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('name/data.pkl', pickle.dumps(value, protocol=2))
    for name, data in files.items():
      archive.writestr(f'name/{name}', data)
  return file.getvalue()


def _legacy(value):
  """The same in the legacy format, as far as the pickles go."""
  parts = 0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, value, []
  return b''.join(pickle.dumps(part, protocol=2) for part in parts)


@pytest.mark.parametrize('write', (_zip, _legacy))
@pytest.mark.parametrize(
    ('value', 'message'),
    (
        (_Calls(os.mkdir, 'made'), rf'asks for {os.mkdir.__module__}.mkdir'),
        (_Calls(eval, '1'), r'asks for \w+.eval'),
        ({'w': _Calls(print, '1')}, r'asks for \w+.print'),
        ([1], 'holds a list'),
        ({'epoch': 3}, "its entry 'epoch' is a int"),
        ({'model': collections.OrderedDict()}, 'is a OrderedDict'),
    ),
)
def test_runs_no_code_and_reads_no_other_value(
    write, value, message, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'bad.pth'
  path.write_bytes(write(value))
  with pytest.raises(UserError, match=message):
    torch_file.read(path)
  assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    ('data', 'message'),
    (
        (b'', 'unknown file format'),
        (b'\x89PNG', 'unknown file format'),
        (pickle.dumps(_Calls(os.mkdir, 'made')), 'unknown file format'),
        (_zip({}, byteorder='big'), 'big-endian'),
        (_legacy({}).replace(b'\x88', b'\x89'), 'big-endian'),
    ),
)
def test_refuses_other_files(data, message, tmp_path):
  path = tmp_path / 'other.pth'
  path.write_bytes(data)
  with pytest.raises(UserError, match=message):
    torch_file.read(path)


def test_refuses_tensors_that_reach_out_of_their_storage(tmp_path):
  """The offset of 'view' from 1 to 9 leaves but one of its six numbers."""
  path = tmp_path / 'out.pth'
  data = (FOLDER / 'legacy.pth').read_bytes()
  # K is BININT1; an offset follows the tuple (Q) of its storage.
  assert data.count(b'QK\x01') == 1
  path.write_bytes(data.replace(b'QK\x01', b'QK\x09'))
  with pytest.raises(UserError, match='not a complete PyTorch'):
    torch_file.read(path)


def test_refuses_a_file_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match=r'x\.pth cannot be read: No such file'):
    torch_file.read(tmp_path / 'x.pth')
