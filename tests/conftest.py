"""A CPU split in eight, before anything else touches TensorFlow."""

import pytest
import tensorflow as tf

from ddpm.runtime import environment

environment.prepare()
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0],
    [tf.config.LogicalDeviceConfiguration()] * 8,
)


@pytest.fixture(scope='session')
def network():
  """A tiny network, shared by tests that do not change it."""
  # Not at the top: it makes tensors, and the CPU is split by then.
  from support import Network

  return Network(dropout=0.1)
