"""Chooses devices, threads and compiler for this machine.

| machine | devices | threads of an operation | XLA |
|---|---|---|---|
| GPUs or TPUs | all of them | TensorFlow's default | yes |
| CPU with oneDNN | one per core | 1 | no |
| the same, too few images for that | fewer | all cores, shared | no |
| CPU without oneDNN | one | all cores | yes |

- One device per core: threads that share a small convolution wait for one
  another; devices meet once per step.
- At least `MIN_IMAGES` per device: each device has a copy of the state and
  makes the same update, which costs as much as the gradient of a few images.
- oneDNN's convolutions are the fastest on a CPU, and not available within XLA.
  Without them, XLA is faster than TensorFlow's own kernels, and on one device
  faster than on several.

`tests/benchmarks/defaults.py` measures all of this on any machine.
"""

import typing

import tensorflow as tf

# There is no public way to ask for this.
from tensorflow.python.util import _pywrap_util_port

from ddpm.runtime import cores

# Images of a microbatch below which another device costs more than it saves.
MIN_IMAGES = 8


class Machine(typing.NamedTuple):
  """What a choice depends on.

  Attributes:
    accelerator: whether there is a GPU or a TPU.
    one_dnn: whether TensorFlow uses oneDNN; not if XLA compiles all anyway.
    cores: that the process may use.
  """

  accelerator: bool
  one_dnn: bool
  cores: int


def this_machine(jit_compile=None):
  """The `Machine` that this process runs on.

  Args:
    jit_compile: whether XLA has to be used; None for where it pays.
  """
  return Machine(
      accelerator=bool(tf.config.list_physical_devices('GPU')),
      one_dnn=has_one_dnn() if jit_compile is None else not jit_compile,
      cores=cores.count(),
  )


class Choice(typing.NamedTuple):
  """How to use a machine.

  Attributes:
    cpu_devices: virtual devices that the CPU is split into; 0 on GPUs and TPUs.
    threads: of one operation; 0 for TensorFlow's default.
    jit_compile: whether to compile with XLA.
  """

  cpu_devices: int
  threads: int
  jit_compile: bool


def for_training(machine, batch_size, *, accumulation_steps=1):
  """Chooses for training.

  Args:
    machine: `Machine`.
    batch_size: images of a step, which the devices must divide.
    accumulation_steps: microbatches that a device's images are split into.

  Returns:
    `Choice`.
  """

  def pays(n):
    images, rest = divmod(batch_size, n * accumulation_steps)
    return rest == 0 and images >= MIN_IMAGES

  several = range(2, machine.cores + 1)
  return _choose(machine, max(filter(pays, several), default=1))


def for_sampling(machine, rows=None):
  """Chooses for drawing or scoring.

  Args:
    machine: `Machine`.
    rows: number of images; None for many.

  Returns:
    `Choice`.
  """
  # With fewer rows than cores, all threads work on each row.
  too_few = rows is not None and rows < machine.cores
  return _choose(machine, 1 if too_few else machine.cores)


def one_device(machine):
  """The `Choice` of a single device."""
  return _choose(machine, 1)


def split(machine, number):
  """The `Choice` of a number of virtual CPU devices, even beside GPUs."""
  return Choice(
      cpu_devices=number,
      threads=1 if number >= machine.cores else machine.cores,
      jit_compile=not machine.one_dnn,
  )


def _choose(machine, number):
  """The table above.

  Args:
    machine: `Machine`.
    number: of CPU devices that there is enough work for.
  """
  if machine.accelerator:
    return Choice(cpu_devices=0, threads=0, jit_compile=True)
  if not machine.one_dnn:
    return Choice(cpu_devices=1, threads=machine.cores, jit_compile=True)
  return split(machine, number)


def has_one_dnn():
  """Whether TensorFlow uses oneDNN's kernels on this processor."""
  return _pywrap_util_port.IsMklEnabled()


def kind(strategy):
  """'CPU', 'GPU' or 'TPU': what a strategy runs on."""
  device = strategy.extended.worker_devices[0]
  return tf.DeviceSpec.from_string(device).device_type


def model(strategy):
  """The product's name, 'NVIDIA H100 80GB HBM3'; None unless it is a GPU."""
  if kind(strategy) != 'GPU':
    return None
  gpu = tf.config.list_physical_devices('GPU')[0]
  return tf.config.experimental.get_device_details(gpu).get('device_name')


def peak_memory(strategy):
  """Bytes in use at most on the fullest GPU of this process; 0 if none is."""
  if kind(strategy) != 'GPU':
    return 0
  return max(
      tf.config.experimental.get_memory_info(gpu.name)['peak']
      for gpu in tf.config.list_logical_devices('GPU')
  )


def pays_to_compile(strategy):
  """Whether XLA is faster on a strategy's devices."""
  machine = this_machine()._replace(accelerator=kind(strategy) != 'CPU')
  return one_device(machine).jit_compile


def describe(strategy, batch_size, *, jit_compile):
  """'2 CPU devices x 32 images, oneDNN'.

  Args:
    strategy: `tf.distribute.Strategy`.
    batch_size: images of a replica.
    jit_compile: whether XLA compiles.
  """
  replicas = strategy.num_replicas_in_sync
  if jit_compile:
    compiler = 'XLA'
  elif kind(strategy) == 'CPU' and has_one_dnn():
    compiler = 'oneDNN'
  else:
    compiler = "TensorFlow's kernels"
  devices = f'{replicas} {kind(strategy)} device{"s" if replicas > 1 else ""}'
  return f'{devices} x {batch_size} images, {compiler}'
