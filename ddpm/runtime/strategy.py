"""Makes the `tf.distribute.Strategy` of a config."""

import os

from absl import logging
import tensorflow as tf

from ddpm.runtime import accelerators
from ddpm.runtime import cluster
from ddpm.runtime import devices as devices_lib
from ddpm.runtime import workers
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

STRATEGIES = ('auto', 'one_device', 'mirrored', 'multi_worker', 'tpu')


def make_strategy(name, choice):
  """Makes the strategy. Call it before TensorFlow does anything else.

  Args:
    name: one of STRATEGIES. 'auto' is multi_worker if TF_CONFIG names several
      processes, tpu on a TPU VM or if TPU_NAME is set, else mirrored over the
      devices of `choice`, or one_device if that is one.
    choice: `devices.Choice`: parts of the CPU, or all GPUs.

  Returns:
    `tf.distribute.Strategy`.

  Raises:
    UserError: the machine lacks what the strategy needs.
    Interrupted: another worker cannot be reached.
  """
  if name == 'auto':
    found = cluster.read()
    if found and len(found.tasks) > 1:
      name = 'multi_worker'
    elif 'TPU_NAME' in os.environ or accelerators.has_tpu():
      name = 'tpu'
  if name == 'multi_worker':
    return _multi_worker()
  if name == 'tpu':
    return _tpu()
  devices = _cpus(choice) if choice.cpu_devices else _gpus()
  if name == 'mirrored' or (name == 'auto' and len(devices) > 1):
    return tf.distribute.MirroredStrategy(devices)
  return tf.distribute.OneDeviceStrategy(devices[0])


def _gpus():
  gpus = tf.config.list_physical_devices('GPU')
  return [f'GPU:{i}' for i in range(len(gpus))]


def _cpus(choice):
  """Splits the CPU, and returns its parts."""
  number = choice.cpu_devices
  try:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices('CPU')[0],
        [tf.config.LogicalDeviceConfiguration()] * number,
    )
    if 'TF_NUM_INTRAOP_THREADS' not in os.environ:
      tf.config.threading.set_intra_op_parallelism_threads(choice.threads)
  except RuntimeError:
    # TensorFlow has started already, as in a notebook: with what it has.
    number = min(number, len(tf.config.list_logical_devices('CPU')))
  return [f'CPU:{i}' for i in range(number)]


def of_this_process(strategy):
  """A strategy of this process's devices, for what it computes by itself."""
  if workers.are_several(strategy):
    return tf.distribute.MirroredStrategy(strategy.extended.worker_devices)
  return strategy


def has_remote_hosts(strategy):
  """Whether a strategy's hosts are not all this process's: on a TPU slice."""
  is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
  return is_tpu and strategy.extended.num_hosts > 1


def iterate(strategy, make_dataset):
  """Iterates over a data set, by this worker's replicas.

  `Strategy.distribute_datasets_from_function` copies to each device by a data
  set of its own, always with tf.data's tuner. At the end of a run, its thread
  can take up to a minute per device to end (seen with TensorFlow 2.21).

  Args:
    strategy: `tf.distribute.Strategy`.
    make_dataset: function (`tf.distribute.InputContext`) -> `tf.data.Dataset`
      whose elements are this worker's replicas', in turn.

  Returns:
    Iterator over values that `strategy.run` takes: an element per replica.
  """
  if isinstance(strategy, tf.distribute.TPUStrategy):
    # Each host of a slice reads for its own TPUs.
    return iter(strategy.distribute_datasets_from_function(make_dataset))
  return _iterate(strategy, make_dataset)


def _iterate(strategy, make_dataset):
  devices = strategy.extended.worker_devices
  replicas = strategy.num_replicas_in_sync

  def distribute(value):
    return strategy.experimental_distribute_values_from_function(value)

  ids = distribute(lambda context: context.replica_id_in_sync_group)
  first = strategy.experimental_local_results(ids)[0]
  with tf.device('CPU:0'):
    elements = iter(
        make_dataset(
            tf.distribute.InputContext(
                num_input_pipelines=replicas // len(devices),
                input_pipeline_id=first // len(devices),
                num_replicas_in_sync=replicas,
            )
        )
    )

  def to_device(context):
    element = next(elements)
    with tf.device(devices[context.replica_id_in_sync_group - first]):
      return tf.nest.map_structure(tf.identity, element)

  while True:
    yield distribute(to_device)


def _multi_worker():
  found = cluster.read()
  if not found:
    raise UserError(
        'distribute.strategy is multi_worker, but TF_CONFIG does not name the'
        ' workers: start them with launch/multi_worker.sh'
    )
  addresses = ', '.join(address for _, address in found.tasks)
  logging.info('waiting for all workers: %s', addresses)
  implementation = (
      tf.distribute.experimental.CommunicationImplementation.NCCL
      if _gpus()
      else tf.distribute.experimental.CommunicationImplementation.RING
  )
  options = tf.distribute.experimental.CommunicationOptions(
      implementation=implementation
  )
  try:
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=options
    )
  except workers.UNREACHABLE as e:
    # A worker of an earlier start, or one that exits now.
    raise Interrupted(
        f'while the workers met ({reason(e)}): rerun the command on all of them'
    ) from e
  except (tf.errors.OpError, ValueError) as e:
    raise UserError(
        f'this worker of TF_CONFIG cannot start ({reason(e)}): is its address'
        ' this machine, and its port free?'
    ) from e


def _tpu():
  # A TPU VM that is not part of a slice has a TPU of its own.
  name = os.environ.get('TPU_NAME', 'local')
  try:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
    if name != 'local':
      tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
  except (
      tf.errors.OpError,
      ValueError,
      RuntimeError,
      ImportError,  # of cloud-tpu-client, for a TPU by name
  ) as e:
    raise UserError(
        f'distribute.strategy is tpu, but no TPU answers as {name!r}'
        f' ({reason(e)}): run on a Cloud TPU VM with tensorflow-tpu installed'
    ) from e
  return tf.distribute.TPUStrategy(resolver)


def local_strategy(
    rows=None, *, name='auto', virtual_devices=0, jit_compile=None
):
  """The devices of this machine, whatever a run was trained on.

  Call it before TensorFlow does anything else, and without TF_CONFIG.

  Args:
    rows: number of rows to compute; None for many.
    name: one of STRATEGIES, but for multi_worker. 'auto' takes all devices.
    virtual_devices: split the CPU into this many; 0 for as many as pay.
    jit_compile: see `devices.this_machine`.
  """
  if not virtual_devices and name != 'one_device':
    accelerators.check_gpus('--strategy=one_device')
  # A run may be training beside it.
  accelerators.grow_memory()
  machine = devices_lib.this_machine(jit_compile)
  if name == 'one_device':
    choice = devices_lib.one_device(machine)
  elif virtual_devices:
    choice = devices_lib.split(machine, virtual_devices)
  else:
    choice = devices_lib.for_sampling(machine, rows)
  return make_strategy(name, choice)
