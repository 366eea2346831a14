"""Accelerators of this machine, whether TensorFlow can use them or not."""

import contextlib
import glob
import os
import re

import tensorflow as tf

from ddpm.runtime import environment
from ddpm.runtime.errors import UserError

# What TensorFlow says at its start about a GPU that it cannot use.
_REASONS = r'dlopen|cuInit|CUDA|cuda|driver|libcu|GPU'


def has_tpu(root='/'):
  """Whether this is a TPU VM."""
  if glob.glob(os.path.join(root, 'dev/accel[0-9]*')):
    return True
  # Newer TPUs use VFIO, as other devices do.
  vendors = glob.glob(os.path.join(root, 'sys/bus/pci/devices/*/vendor'))
  return bool(
      glob.glob(os.path.join(root, 'dev/vfio/[0-9]*'))
      and any(_read(path) == '0x1ae0' for path in vendors)  # Google
  )


def check_gpus(cpu_flag, root='/'):
  """Checks that TensorFlow can use this machine's GPUs.

  Args:
    cpu_flag: by which the user asks for the CPU.
    root: of the file system.

  Raises:
    UserError: it cannot; with TensorFlow's own reason.
  """
  hidden = os.environ.get('CUDA_VISIBLE_DEVICES', '0') in ('', '-1')
  if hidden or not os.path.exists(os.path.join(root, 'dev/nvidia0')):
    return
  if tf.config.list_physical_devices('GPU'):
    return
  raise UserError(
      f'this machine has a GPU, but TensorFlow cannot use it ({_reason()}):'
      " install TensorFlow's CUDA libraries with pip install -e '.[gpu]', or"
      f' use the CPU with {cpu_flag}'
  )


def grow_memory():
  """Takes the GPUs' memory as it is needed, not all of it at the start."""
  for gpu in tf.config.list_physical_devices('GPU'):
    # TensorFlow may have started already, as in a notebook.
    with contextlib.suppress(RuntimeError):
      tf.config.experimental.set_memory_growth(gpu, True)


def _reason():
  """TensorFlow's reason, from its messages at its start."""
  lines = environment.startup_messages().splitlines()
  reasons = [line for line in lines if re.search(_REASONS, line)]
  if not reasons:
    return 'it does not say why'
  # Without the time, thread and file.
  return re.sub(r'^.*?\] ', '', reasons[-1]).strip().rstrip('.')


def _read(path):
  with open(path) as f:
    return f.read().strip()
