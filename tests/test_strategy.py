"""Which devices a name means, on machines that are made up."""

import json

import numpy as np
import pytest
import tensorflow as tf

from configs import default
from ddpm.run import build
from ddpm.runtime import devices as devices_lib
from ddpm.runtime import strategy as strategy_lib
from ddpm.runtime import workers
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import UserError


def tf_config(*workers):
  task = {'type': 'worker', 'index': 0}
  return {'cluster': {'worker': workers}, 'task': task}


TWO_WORKERS = tf_config('a:1', 'b:1')
RING, NCCL = (
    ('multi_worker', implementation)
    for implementation in (
        tf.distribute.experimental.CommunicationImplementation.RING,
        tf.distribute.experimental.CommunicationImplementation.NCCL,
    )
)


class Machine:
  """With some GPUs, without TPU or cluster; its strategies are (name, what).

  Attributes:
    calls: dict of what TensorFlow was told to set up.
  """

  def __init__(self, monkeypatch):
    self._monkeypatch = monkeypatch
    self.calls = {}
    for name in ('TF_CONFIG', 'TPU_NAME', 'TF_NUM_INTRAOP_THREADS'):
      monkeypatch.delenv(name, raising=False)
    self.set_gpus(0)

    def patch(module, name, function):
      monkeypatch.setattr(module, name, function)

    def note(name):
      return lambda *args: self.calls.update({name: args})

    patch(tf.config, 'set_logical_device_configuration', note('split'))
    patch(
        tf.config.threading, 'set_intra_op_parallelism_threads', note('threads')
    )
    patch(tf.config, 'experimental_connect_to_cluster', note('connect'))
    patch(tf.tpu.experimental, 'initialize_tpu_system', note('initialize'))
    patch(tf.config.experimental, 'set_memory_growth', note('growth'))
    resolvers = tf.distribute.cluster_resolver
    patch(resolvers, 'TPUClusterResolver', lambda tpu: tpu)
    for name, strategy in {
        'OneDeviceStrategy': 'one_device',
        'MirroredStrategy': 'mirrored',
        'TPUStrategy': 'tpu',
    }.items():
      patch(tf.distribute, name, lambda what, name=strategy: (name, what))
    patch(
        tf.distribute, 'MultiWorkerMirroredStrategy',
        lambda communication_options: (
            'multi_worker', communication_options.implementation
        ),
    )  # fmt: skip

  def set_gpus(self, number):
    devices = {'CPU': ['cpu'], 'GPU': ['gpu'] * number}
    self._monkeypatch.setattr(tf.config, 'list_physical_devices', devices.get)

  def set_env(self, name, value):
    text = value if isinstance(value, str) else json.dumps(value)
    self._monkeypatch.setenv(name, text)


def choice(cpus):
  """That of a number of CPU devices; 0 for the GPUs."""
  return devices_lib.Choice(cpu_devices=cpus, threads=5, jit_compile=False)


@pytest.fixture
def machine(monkeypatch):
  return Machine(monkeypatch)


@pytest.mark.parametrize(
    'env, gpus, cpus, expected',
    [
        ({}, 0, 1, ('one_device', 'CPU:0')),
        ({}, 0, 3, ('mirrored', ['CPU:0', 'CPU:1', 'CPU:2'])),
        ({}, 1, 0, ('one_device', 'GPU:0')),
        ({}, 2, 0, ('mirrored', ['GPU:0', 'GPU:1'])),
        # To try a topology: the GPUs stay out of it.
        ({}, 4, 2, ('mirrored', ['CPU:0', 'CPU:1'])),
        ({'TPU_NAME': 'v4'}, 2, 0, ('tpu', 'v4')),
        ({'TPU_NAME': 'v4'}, 0, 4, ('tpu', 'v4')),
        ({'TF_CONFIG': TWO_WORKERS}, 0, 2, RING),
        ({'TF_CONFIG': TWO_WORKERS}, 1, 0, NCCL),
        ({'TF_CONFIG': TWO_WORKERS, 'TPU_NAME': 'v4'}, 0, 2, RING),
        ({'TF_CONFIG': tf_config('a:1')}, 0, 1, ('one_device', 'CPU:0')),
    ],
)  # fmt: skip
def test_auto(machine, env, gpus, cpus, expected):
  machine.set_gpus(gpus)
  for name, value in env.items():
    machine.set_env(name, value)
  assert strategy_lib.make_strategy('auto', choice(cpus)) == expected
  if cpus and expected[0] in ('one_device', 'mirrored'):
    cpu, parts = machine.calls['split']
    assert cpu == 'cpu' and len(parts) == cpus
    assert machine.calls['threads'] == (5,)
  else:
    assert 'split' not in machine.calls and 'threads' not in machine.calls


def test_threads_that_the_user_set_are_kept(machine):
  machine.set_env('TF_NUM_INTRAOP_THREADS', '3')
  strategy_lib.make_strategy('auto', choice(2))
  assert 'split' in machine.calls and 'threads' not in machine.calls


def test_after_tensorflow_has_started_its_devices_are_used(
    machine, monkeypatch
):
  """As in a notebook: ddpm.train, then Run.sample."""

  def fail(*args):
    raise RuntimeError('cannot be modified after being initialized')

  monkeypatch.setattr(tf.config, 'set_logical_device_configuration', fail)
  monkeypatch.setattr(
      tf.config, 'list_logical_devices', lambda kind: ['CPU:0', 'CPU:1']
  )
  made = strategy_lib.make_strategy('auto', choice(4))
  assert made == ('mirrored', ['CPU:0', 'CPU:1'])
  made = strategy_lib.make_strategy('auto', choice(1))
  assert made == ('one_device', 'CPU:0')


@pytest.mark.parametrize(
    'name, expected',
    [
        ('one_device', ('one_device', 'GPU:0')),
        ('mirrored', ('mirrored', ['GPU:0', 'GPU:1'])),
        ('multi_worker', NCCL),
        ('tpu', ('tpu', 'local')),
    ],
)
def test_a_name_is_taken_at_its_word(machine, name, expected):
  """Whatever `auto` would choose; one worker may be a cluster."""
  machine.set_gpus(2)
  machine.set_env('TF_CONFIG', tf_config('a:1'))
  assert strategy_lib.make_strategy(name, choice(0)) == expected


@pytest.mark.parametrize('name', ['local', 'v4'])
def test_only_a_tpu_elsewhere_is_connected_to(machine, name):
  machine.set_env('TPU_NAME', name)
  assert strategy_lib.make_strategy('tpu', choice(1)) == ('tpu', name)
  assert machine.calls.get('connect') == (None if name == 'local' else (name,))
  assert machine.calls['initialize'] == (name,)


def test_multi_worker_needs_tf_config(machine):
  with pytest.raises(UserError, match='but TF_CONFIG does not name the work'):
    strategy_lib.make_strategy('multi_worker', choice(1))
  machine.set_env('TF_CONFIG', '{"cluster": ')
  with pytest.raises(UserError, match=r'^TF_CONFIG is '):
    strategy_lib.make_strategy('auto', choice(1))


@pytest.mark.parametrize(
    'error',
    [ValueError('of\nno use'), tf.errors.UnknownError(None, None, 'of no use')],
)
def test_a_worker_that_cannot_start(machine, monkeypatch, error):
  def fail(**kwargs):
    raise error

  monkeypatch.setattr(tf.distribute, 'MultiWorkerMirroredStrategy', fail)
  machine.set_env('TF_CONFIG', TWO_WORKERS)
  with pytest.raises(UserError, match=r'TF_CONFIG cannot start \(of no use\)'):
    strategy_lib.make_strategy('auto', choice(1))


@pytest.mark.parametrize('error', workers.UNREACHABLE)
def test_a_worker_that_cannot_reach_the_others(machine, monkeypatch, error):
  def fail(**kwargs):
    raise error(None, None, 'worker 1 has a different incarnation')

  monkeypatch.setattr(tf.distribute, 'MultiWorkerMirroredStrategy', fail)
  machine.set_env('TF_CONFIG', TWO_WORKERS)
  with pytest.raises(Interrupted, match=r'met \(worker 1 has a different inc'):
    strategy_lib.make_strategy('auto', choice(1))


@pytest.mark.parametrize(
    'error',
    [ValueError('none'), RuntimeError('none'),
     tf.errors.NotFoundError(None, None, 'none')],
)  # fmt: skip
def test_no_tpu(machine, monkeypatch, error):
  def fail(tpu):
    raise error

  monkeypatch.setattr(
      tf.distribute.cluster_resolver, 'TPUClusterResolver', fail
  )
  message = r"but no TPU answers as 'local' \(none\)"
  with pytest.raises(UserError, match=message):
    strategy_lib.make_strategy('tpu', choice(1))


@pytest.mark.parametrize(
    'rows, virtual_devices, gpus, expected',
    [
        (None, 0, 0, 4),
        (3, 0, 0, 1),
        (64, 2, 0, 2),
        (64, 0, 1, 0),
        (64, 2, 1, 2),
    ],
)
def test_local_strategy(
    machine, monkeypatch, rows, virtual_devices, gpus, expected
):
  machine.set_gpus(gpus)
  monkeypatch.setattr(strategy_lib.devices_lib.cores, 'count', lambda: 4)
  made = strategy_lib.local_strategy(rows, virtual_devices=virtual_devices)
  devices = [f'CPU:{i}' for i in range(expected)] or ['GPU:0']
  one = len(devices) == 1
  assert made == (
      ('one_device', devices[0]) if one else ('mirrored', devices)
  )
  if expected:
    assert machine.calls['threads'] == (1 if expected == 4 else 4,)


def test_a_tpu_is_not_left_for_the_cores(machine):
  machine.set_env('TPU_NAME', 'v4')
  assert strategy_lib.local_strategy() == ('tpu', 'v4')
  assert 'threads' not in machine.calls


@pytest.mark.parametrize(
    'overrides, number',
    [
        ({}, 4),
        ({'train.batch_size': 16}, 2),
        ({'train.accumulation_steps': 4}, 2),
        ({'distribute.virtual_devices': 8}, 8),
        ({'distribute.strategy': 'mirrored'}, 4),
        ({'distribute.strategy': 'one_device'}, 1),
        ({'jit_compile': True}, 1),
        ({'jit_compile': False}, 4),
        # What it gives depends on the number of devices.
        ({'optimizer.clip': 'per_replica'}, 1),
        ({'optimizer.clip': 'per_replica', 'distribute.virtual_devices': 2}, 2),
    ],
)
def test_a_config_trains_on_as_many_devices_as_pay(
    machine, monkeypatch, overrides, number
):
  monkeypatch.setattr(strategy_lib.devices_lib.cores, 'count', lambda: 4)
  config = default.get_config()
  config.train.batch_size = 64
  config.update_from_flattened_dict(overrides)
  _, made = build.make_strategy(config)
  assert len([made] if isinstance(made, str) else made) == number


def test_what_a_process_computes_alone(monkeypatch):
  mirrored = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
  assert strategy_lib.of_this_process(mirrored) is mirrored
  monkeypatch.setattr(workers, 'are_several', lambda strategy: True)
  alone = strategy_lib.of_this_process(mirrored)
  assert alone is not mirrored and alone.num_replicas_in_sync == 2


@pytest.mark.parametrize('number', [1, 2, 8])
def test_each_replica_gets_its_element_on_its_device(number):
  devices = [f'CPU:{i}' for i in range(number)]
  if number == 1:
    strategy = tf.distribute.OneDeviceStrategy(devices[0])
  else:
    strategy = tf.distribute.MirroredStrategy(devices)
  seen = []

  def make_dataset(context):
    seen.append(context)
    return tf.data.Dataset.range(100).map(lambda i: {'i': i, 'twice': 2 * i})

  blocks = strategy_lib.iterate(strategy, make_dataset)
  for step in range(2):
    block = next(blocks)
    for name, factor in (('i', 1), ('twice', 2)):
      values = strategy.experimental_local_results(block[name])
      expected = factor * (step * number + np.arange(number))
      np.testing.assert_array_equal(values, expected)
      for value, device in zip(values, devices, strict=True):
        assert value.device.endswith(device)
  (context,) = seen
  assert context.num_replicas_in_sync == number
  assert (context.num_input_pipelines, context.input_pipeline_id) == (1, 0)


@pytest.mark.parametrize('growth', [False, True])
def test_memory_growth(machine, growth):
  machine.set_gpus(1)
  config = default.get_config()
  config.distribute.memory_growth = growth
  build.make_strategy(config)
  assert machine.calls == ({'growth': ('gpu', True)} if growth else {})


def test_samplers_leave_memory_to_a_training(machine):
  machine.set_gpus(1)
  strategy_lib.local_strategy()
  assert machine.calls == {'growth': ('gpu', True)}
