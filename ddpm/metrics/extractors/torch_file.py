"""Reads the tensors of a PyTorch file without PyTorch.

Unpickling can run arbitrary code; here it can build only dictionaries and
tensors. The file layouts follow `_legacy_load` and `_load` in PyTorch's
torch/serialization.py.
"""

import collections
import dataclasses
import io
import pickle
import struct
import zipfile

import numpy as np

from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# The first bytes of a file. The legacy format is five pickles (this number, the
# version, the writer's machine, the state dict, the keys of its storages)
# followed by the raw storages.
_ZIP = b'PK\x03\x04'
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

_DTYPES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}

# Keras's names of a layer's weights to PyTorch's.
_NAMES = {
    'kernel': 'weight',
    'bias': 'bias',
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}


def read(path):
  """Reads a state dict that `torch.save` wrote, in the zip or legacy format.

  Args:
    path: the file.

  Returns:
    Dict of NumPy arrays by name, which are read-only views of the file's bytes.

  Raises:
    UserError: the file cannot be read, is truncated, or holds anything but a
      dict of tensors.
  """
  try:
    with open(path, 'rb') as f:
      data = f.read()
  except OSError as e:
    raise UserError(f'{path} cannot be read: {reason(e)}') from e
  try:
    if data.startswith(_ZIP):
      state, storages = _read_zip(data)
    else:
      state, storages = _read_legacy(data)
    return {name: t.array(storages[t.key]) for name, t in state.items()}
  # On malformed bytes pickle may raise anything.
  except Exception as e:
    raise UserError(
        f'{path} is not a complete PyTorch state dict ({reason(e)}), expected'
        ' a file from torch.save(model.state_dict(), file): download it again'
    ) from e


def keras_weights(model, state):
  """Converts weights for a Keras model with the same layer names.

  Args:
    model: built from Conv2D, DepthwiseConv2D, BatchNormalization and Dense.
    state: from `read`.

  Returns:
    List of NumPy arrays, in the order of `model.variables`.
  """
  weights = []
  for variable in model.variables:
    layer, name = variable.path.rsplit('/', 1)
    array = state[f'{layer}.{_NAMES[name]}']
    if array.ndim == 4:
      # [out, in, h, w] to [h, w, in, out]. In a depthwise kernel "in" is 1 and
      # comes last in Keras.
      array = np.transpose(array, [2, 3, 1, 0])
      if array.shape != variable.shape:
        array = np.swapaxes(array, 2, 3)
    elif array.ndim == 2:
      array = array.T
    weights.append(np.ascontiguousarray(array))
  return weights


@dataclasses.dataclass(frozen=True)
class _Storage:
  key: str
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor's location in a storage; offset and strides in elements."""

  key: str
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self, storage):
    size = self.dtype.itemsize
    # NumPy checks the bounds.
    return np.ndarray(
        self.shape,
        self.dtype,
        storage,
        self.offset * size,
        [stride * size for stride in self.strides],
    )


def _rebuild_tensor(storage, offset, shape, strides, *_):
  return _Tensor(storage.key, storage.dtype, offset, shape, strides)


def _rebuild_parameter(tensor, *_):
  return tensor

# All that a state dict needs.
_CALLABLES = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
  """Builds a state dict and collects the storages it refers to."""

  def __init__(self, file):
    super().__init__(file)
    self.storages = {}

  def find_class(self, module, name):
    if module == 'torch' and name in _DTYPES:
      return name
    if (module, name) not in _CALLABLES:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}')
    return _CALLABLES[module, name]

  def persistent_load(self, pid):
    # `view` is in the legacy format only: a storage within another.
    kind, dtype, key, _device, _size, *view = pid
    if kind != 'storage' or any(view):
      raise pickle.UnpicklingError('it refers to objects other than storages')
    return self.storages.setdefault(key, _Storage(key, _DTYPES[dtype]))

  def load_state(self):
    state = self.load()
    if not isinstance(state, dict):
      raise pickle.UnpicklingError(f'it holds a {type(state).__name__}')
    for name, value in state.items():
      if not isinstance(value, _Tensor):
        raise pickle.UnpicklingError(
            f'its entry {name!r} is a {type(value).__name__}'
        )
    return state


def _read_zip(data):
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    # All names start with the original file name.
    root = archive.namelist()[0].split('/')[0]
    if f'{root}/byteorder' in archive.namelist():
      _check_byte_order(archive.read(f'{root}/byteorder') == b'little')
    unpickler = _Unpickler(io.BytesIO(archive.read(f'{root}/data.pkl')))
    state = unpickler.load_state()
    storages = {
        key: archive.read(f'{root}/data/{key}') for key in unpickler.storages
    }
  return state, storages


def _read_legacy(data):
  if not data.startswith(_LEGACY):
    raise pickle.UnpicklingError('unknown file format')
  file = io.BytesIO(data)
  _, _, machine = [_Unpickler(file).load() for _ in range(3)]
  _check_byte_order(machine['little_endian'])
  unpickler = _Unpickler(file)
  state = unpickler.load_state()
  storages = {}
  for key in _Unpickler(file).load():
    (elements,) = struct.unpack('<q', file.read(8))
    size = elements * unpickler.storages[key].dtype.itemsize
    storages[key] = file.read(size)
  return state, storages


def _check_byte_order(little_endian):
  if not little_endian:
    raise pickle.UnpicklingError('it is from a big-endian machine')
