"""Accelerators that are there but cannot be used are not passed over."""

import pytest
import tensorflow as tf

from configs import default
from ddpm.run import build
from ddpm.runtime import accelerators
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime.errors import UserError

# What TensorFlow 2.21 says where CUDA's libraries are missing.
_MESSAGES = """
I0000 00:00:1.2 3 cudart_stub.cc:31] Could not find cuda drivers on your machine
W0000 00:00:1.2 3 gpu_device.cc:245] Cannot dlopen some GPU libraries. Skipping.
I0000 00:00:1.2 3 cpu_feature_guard.cc:227] This binary is optimized.
"""


def make_files(root, *paths):
  for path in paths:
    path, _, content = path.partition('=')
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


@pytest.mark.parametrize(
    'files, expected',
    [
        ([], False),
        (['dev/accel0'], True),
        # Intel's NPUs.
        (['dev/accel/accel0'], False),
        (['dev/vfio/12', 'sys/bus/pci/devices/a/vendor=0x1ae0\n'], True),
        # A graphics card that is handed on to a virtual machine.
        (['dev/vfio/12', 'sys/bus/pci/devices/a/vendor=0x10de\n'], False),
        # A network card of Google's.
        (['dev/vfio/vfio', 'sys/bus/pci/devices/a/vendor=0x1ae0\n'], False),
    ],
)
def test_has_tpu(tmp_path, files, expected):
  make_files(tmp_path, *files)
  assert accelerators.has_tpu(tmp_path) == expected


@pytest.fixture
def broken_gpu(tmp_path, monkeypatch):
  """A machine with a GPU and without CUDA's libraries."""
  make_files(tmp_path, 'dev/nvidia0')
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.setattr(
      accelerators.environment, 'startup_messages', lambda: _MESSAGES
  )
  monkeypatch.setattr(accelerators.check_gpus, '__defaults__', (tmp_path,))
  return tmp_path


def test_a_gpu_that_cannot_be_used(broken_gpu):
  reason = r'cannot use it \(Cannot dlopen some GPU libraries. Skipping\): ins'
  config = default.get_config()
  with pytest.raises(UserError, match=f'{reason}.*config.distribute.strategy='):
    build.make_strategy(config)
  with pytest.raises(UserError, match=f'{reason}.* --strategy=one_device'):
    strategy_lib.local_strategy(4)


def test_the_cpu_may_be_asked_for(broken_gpu, monkeypatch):
  config = default.get_config()
  config.distribute.strategy = 'one_device'
  one = tf.distribute.OneDeviceStrategy
  assert isinstance(build.make_strategy(config), one)
  assert isinstance(strategy_lib.local_strategy(name='one_device'), one)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  accelerators.check_gpus('')


def test_a_gpu_that_can_be_used(broken_gpu, monkeypatch):
  monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: [kind])
  accelerators.check_gpus('')


def test_a_tpu_vm_trains_on_its_tpu(monkeypatch):
  monkeypatch.delenv('TPU_NAME', raising=False)
  monkeypatch.setattr(accelerators, 'has_tpu', lambda: True)
  monkeypatch.setattr(strategy_lib, '_tpu', lambda: 'the TPU')
  assert strategy_lib.local_strategy() == 'the TPU'
