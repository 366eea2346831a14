"""What is chosen for a machine: devices, threads, XLA."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from ddpm.runtime import devices


def machine(cores, *, one_dnn=True, accelerator=False):
  return devices.Machine(
      accelerator=accelerator, one_dnn=one_dnn, cores=cores
  )


@pytest.mark.parametrize(
    'cores, batch_size, accumulation_steps, number, threads',
    [
        (1, 64, 1, 1, 1),
        (2, 64, 1, 2, 1),
        # The devices divide the batch: 3 and 5 to 7 of them do not.
        (3, 64, 1, 2, 3),
        (7, 64, 1, 4, 7),
        (8, 64, 1, 8, 1),
        # MIN_IMAGES each.
        (64, 64, 1, 8, 64),
        (64, 128, 1, 16, 64),
        (64, 512, 1, 64, 1),
        (2, 16, 1, 2, 1),
        (2, 8, 1, 1, 2),
        # That no number of devices divides.
        (64, 61, 1, 1, 64),
        # Of a microbatch.
        (2, 64, 4, 2, 1),
        (2, 64, 8, 1, 2),
        (4, 96, 3, 4, 1),
        (4, 100, 3, 1, 4),
    ],
)
def test_devices_to_train_on(
    cores, batch_size, accumulation_steps, number, threads
):
  choice = devices.for_training(
      machine(cores), batch_size, accumulation_steps=accumulation_steps
  )
  assert choice == (number, threads, False)


@pytest.mark.parametrize(
    'cores, rows, number, threads',
    [(4, None, 4, 1), (4, 4, 4, 1), (4, 3, 1, 4), (64, 100, 64, 1),
     (1, 1, 1, 1)],
)  # fmt: skip
def test_devices_to_sample_on(cores, rows, number, threads):
  choice = devices.for_sampling(machine(cores), rows)
  assert choice == (number, threads, False)


@pytest.mark.parametrize('one_dnn', [True, False])
def test_xla_replaces_one_dnn(one_dnn):
  here = machine(2, one_dnn=one_dnn)
  for choice in (
      devices.for_training(here, 64),
      devices.for_sampling(here),
      devices.one_device(here),
      devices.split(here, 8),
  ):
    assert choice.jit_compile != one_dnn


def test_xla_has_one_device_of_a_cpu():
  here = machine(4, one_dnn=False)
  assert devices.for_training(here, 64) == (1, 4, True)
  assert devices.for_sampling(here) == (1, 4, True)
  # A number is obeyed.
  assert devices.split(here, 2) == (2, 4, True)


def test_accelerators_come_first():
  here = machine(64, accelerator=True)
  all_of_them = (0, 0, True)
  assert devices.for_training(here, 128) == all_of_them
  assert devices.for_sampling(here, 1) == all_of_them
  assert devices.one_device(here) == all_of_them
  # To try a topology: the GPUs stay out of it.
  assert devices.split(here, 4) == (4, 64, False)


@pytest.mark.parametrize('given, expected', [(None, True), ('0', False)])
def test_one_dnn_is_on_unless_told(given, expected):
  """On any x86-64; asked of a new process, as TensorFlow reads it once."""
  env = {k: v for k, v in os.environ.items() if k != 'TF_ENABLE_ONEDNN_OPTS'}
  if given:
    env['TF_ENABLE_ONEDNN_OPTS'] = given
  script = """
from ddpm.runtime import environment
environment.import_tensorflow()
from ddpm.runtime import devices
print(devices.has_one_dnn(), devices.this_machine().one_dnn)
"""
  done = subprocess.run(
      [sys.executable, '-c', script], env=env, capture_output=True, text=True,
      check=True,
  )  # fmt: skip
  assert done.stdout.split() == [str(expected)] * 2


def test_they_are_described(monkeypatch):
  def described(strategy, jit_compile=False):
    return devices.describe(strategy, 32, jit_compile=jit_compile)

  one = tf.distribute.OneDeviceStrategy('CPU:0')
  two = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
  monkeypatch.setattr(devices, 'has_one_dnn', lambda: True)
  assert described(one) == '1 CPU device x 32 images, oneDNN'
  assert described(two) == '2 CPU devices x 32 images, oneDNN'
  assert described(two, True) == '2 CPU devices x 32 images, XLA'
  monkeypatch.setattr(devices, 'has_one_dnn', lambda: False)
  assert described(one) == "1 CPU device x 32 images, TensorFlow's kernels"
