"""A CPU split in eight, before anything else touches TensorFlow."""

import pytest
import tensorflow as tf

from ddpm.runtime import environment

environment.import_tensorflow()
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0],
    [tf.config.LogicalDeviceConfiguration()] * 8,
)


# The modules that take longest. They are begun first: one that is begun last
# leaves a core without work.
_LONGEST = (
    'test_step', 'test_sample', 'test_main', 'test_faults', 'test_convert',
    'test_sampler', 'test_preemption', 'test_api', 'test_evaluate',
    'test_untidy', 'test_properties', 'test_html_report',
    'test_unet', 'test_torch_training', 'test_solvers', 'test_schedulers',
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Sorts the modules, and leaves the order of a module's tests."""
  ranks = {name: rank for rank, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope='session')
def network():
  """A tiny network, shared by tests that do not change it."""
  # Not at the top: it makes tensors, and the CPU is split by then.
  from support import Network

  return Network(dropout=0.1)
