"""Makes the `tf.distribute.Strategy` of a config."""

import contextlib
import os
import re

from absl import logging
import tensorflow as tf

from ddpm.runtime import cluster
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

STRATEGIES = ('auto', 'one_device', 'mirrored', 'multi_worker', 'tpu')


def make_strategy(name, *, virtual_devices=0):
  """Makes the strategy. Call it before TensorFlow does anything else.

  Args:
    name: one of STRATEGIES. 'auto' is multi_worker if TF_CONFIG names several
      processes, tpu if TPU_NAME is set, else mirrored over several GPUs (or
      virtual devices), else one_device.
    virtual_devices: split the CPU into this many devices, to try a topology
      without its hardware; 0 for no split.

  Returns:
    `tf.distribute.Strategy`.

  Raises:
    UserError: the machine lacks what the strategy needs.
  """
  gpus = tf.config.list_physical_devices('GPU')
  if virtual_devices:
    cpu = tf.config.list_physical_devices('CPU')[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_devices
    )
    devices = [f'CPU:{i}' for i in range(virtual_devices)]
  else:
    devices = [f'GPU:{i}' for i in range(len(gpus))]

  if name == 'auto':
    found = cluster.read()
    if found and len(found.tasks) > 1:
      name = 'multi_worker'
    elif 'TPU_NAME' in os.environ:
      name = 'tpu'
    else:
      name = 'mirrored' if len(devices) > 1 else 'one_device'

  if name == 'one_device':
    return tf.distribute.OneDeviceStrategy(devices[0] if devices else 'CPU:0')
  if name == 'mirrored':
    if not devices:
      raise UserError(
          'distribute.strategy is mirrored, but TensorFlow sees no GPU: use'
          ' one_device, or split the CPU with distribute.virtual_devices=2'
      )
    return tf.distribute.MirroredStrategy(devices)
  if name == 'multi_worker':
    return _multi_worker(gpus)
  return _tpu()


def is_chief(strategy):
  """Whether this process writes checkpoints and logs."""
  resolver = strategy.cluster_resolver
  if resolver is None or resolver.task_type in (None, '', 'chief'):
    return True
  has_chief = 'chief' in resolver.cluster_spec().as_dict()
  return not has_chief and resolver.task_id == 0


def check_agreement(strategy, step):
  """Checks that all workers start at the same step.

  Raises:
    UserError: they do not, so they do not share a workdir.
  """
  if not _has_several_processes(strategy):
    return
  number = tf.constant([step], tf.int64)
  gather = tf.function(
      lambda: strategy.gather(strategy.run(tf.identity, (number,)), axis=0)
  )
  steps = sorted(set(gather().numpy().tolist()))
  if len(steps) > 1:
    raise UserError(
        f'the workers found checkpoints of different steps ({steps[0]} to'
        f' {steps[-1]}): the workdir must be a folder that all of them share'
    )


@contextlib.contextmanager
def watching_workers(strategy):
  """Exits cleanly when another worker dies.

  TensorFlow's coordination service receives the heartbeats of all workers, and
  aborts collectives about 10 s after a worker's last one.

  Raises:
    Interrupted: names that worker.
  """
  try:
    yield
  except tf.errors.OpError as e:
    if not (
        _has_several_processes(strategy)
        and 'Collective ops is aborted' in e.message
    ):
      raise
    raise Interrupted(
        f'{_lost_worker(strategy, e.message)} has exited; see its log. Rerun'
        ' the command on all workers to resume from the last checkpoint'
    ) from e


def _has_several_processes(strategy):
  return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _lost_worker(strategy, message):
  """Name and address of the worker that a collective's error is about."""
  spec = strategy.cluster_resolver.cluster_spec()
  if match := re.search(r'/job:(\w+)/(?:replica:\d+/)?task:(\d+)', message):
    job, task = match[1], int(match[2])
  else:
    # The leader, which would know of the others, has exited itself.
    job, task = 'chief' if 'chief' in spec.jobs else 'worker', 0
  return f'{job} {task} ({spec.task_address(job, task)})'


def _multi_worker(gpus):
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
      if gpus
      else tf.distribute.experimental.CommunicationImplementation.RING
  )
  options = tf.distribute.experimental.CommunicationOptions(
      implementation=implementation
  )
  try:
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=options
    )
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
  except (tf.errors.OpError, ValueError, RuntimeError) as e:
    raise UserError(
        f'distribute.strategy is tpu, but no TPU answers as {name!r}'
        f' ({reason(e)}): run on a Cloud TPU VM with tensorflow-tpu installed,'
        ' and set TPU_NAME on a slice'
    ) from e
  return tf.distribute.TPUStrategy(resolver)


def local_strategy(rows=None, *, virtual_devices=0):
  """All devices of this machine, whatever a run was trained on.

  Without GPUs each core is a device with one thread, if there are rows for all
  of them: threads that share a small convolution wait for one another.

  Call it before TensorFlow does anything else, and without TF_CONFIG.

  Args:
    rows: number of rows to compute; None for many.
    virtual_devices: split the CPU into this many; 0 for one per core.
  """
  cores = _cores()
  if not (
      virtual_devices
      or tf.config.list_physical_devices('GPU')
      or 'TPU_NAME' in os.environ
      or (rows is not None and rows < cores)
  ):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    virtual_devices = cores
  return make_strategy('auto', virtual_devices=virtual_devices)


def _cores():
  """Cores that this process may run on."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1  # macOS
