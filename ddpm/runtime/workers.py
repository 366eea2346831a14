"""What the processes of one run know of each other, and how they fail."""

import contextlib
import re

from absl import logging
import tensorflow as tf

from ddpm.runtime import cache
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# Status codes of a process that cannot be reached, or has restarted.
UNREACHABLE = (
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)

# The program's own faults, which would come again.
_FAULTS = (
    tf.errors.InvalidArgumentError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnimplementedError,
)


def are_several(strategy):
  """Whether a strategy's devices belong to several processes."""
  return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
  """Whether this process writes checkpoints and logs."""
  resolver = strategy.cluster_resolver
  if resolver is None or resolver.task_type in (None, '', 'chief'):
    return True
  has_chief = 'chief' in resolver.cluster_spec().as_dict()
  return not has_chief and resolver.task_id == 0


def gather(strategy, numbers):
  """What each process of a strategy says; all of them have to call it.

  Args:
    strategy: `tf.distribute.Strategy`.
    numbers: list of integers.

  Returns:
    List of such lists, the chief's first.
  """
  if not are_several(strategy):
    return [numbers]
  row = tf.constant([numbers], tf.int64)
  rows = tf.function(
      lambda: strategy.gather(strategy.run(tf.identity, (row,)), axis=0)
  )
  return rows().numpy().tolist()


def chief_first(strategy, is_done, do, message):
  """Lets the chief do what each process would do; all of them have to call it.

  The others do it next if it is not done for them, as on a disk of their own.

  Args:
    strategy: `tf.distribute.Strategy`.
    is_done: function () -> bool.
    do: function (), which does nothing if it is done.
    message: that is logged where there is a wait.
  """
  if is_chief(strategy):
    do()
  elif not is_done():
    logging.info('%s', message)
  gather(strategy, [0])
  if not is_chief(strategy):
    do()


def check_same_data(strategy, digest):
  """Checks that all workers found the same data.

  Args:
    strategy: `tf.distribute.Strategy`.
    digest: of this worker's data, in hexadecimal digits.

  Raises:
    UserError: they did not.
  """
  rows = gather(strategy, [int(digest[:15], 16)])
  if len({number for (number,) in rows}) > 1:
    raise UserError(
        'the workers have different data: give all of them the same files'
    )


@contextlib.contextmanager
def explained(strategy):
  """Turns the errors of devices and collectives into what to do about them.

  TensorFlow's coordination service receives the heartbeats of all workers, and
  aborts collectives about 10 s after a worker's last one.

  Raises:
    Interrupted: another worker was lost; the message names it.
    UserError: NCCL cannot communicate, or a device's memory is too small.
  """
  try:
    yield
  except tf.errors.OpError as e:
    if cache.is_at_fault(e):
      raise
    if are_several(strategy) and is_lost_worker(e):
      raise Interrupted(
          f'{_lost_worker(strategy, e.message)} has exited; see its log. Rerun'
          ' the command on all workers to resume from the last checkpoint'
      ) from e
    if 'NCCL' in e.message:
      raise UserError(
          f'NCCL, by which GPUs exchange gradients, fails ({_cause(e)}): rerun'
          ' with NCCL_DEBUG=INFO, which logs the cause, often the network'
          ' interface (NCCL_SOCKET_IFNAME) or a /dev/shm that is too small'
      ) from e
    if isinstance(e, tf.errors.ResourceExhaustedError):
      raise UserError(
          f'the memory of a device is too small ({_cause(e)}): set'
          ' train.remat, raise train.accumulation_steps or lower'
          ' train.batch_size'
      ) from e
    raise


def is_lost_worker(error):
  """Whether an error means that another process has died or cannot be reached.

  By the status code; collectives that are aborted pass on another's code, and
  the text of the cause. NCCL's own errors say so only in their text.
  """
  text = error.message
  if 'NCCL' in text:
    return 'remote process exited' in text
  if isinstance(error, UNREACHABLE) or re.search('heartbeat|incarnation', text):
    return True
  aborted = 'Collective ops is aborted' in text
  return aborted and not isinstance(error, _FAULTS)


def _lost_worker(strategy, message):
  """Name and address of the worker that a collective's error is about."""
  resolver = strategy.cluster_resolver
  spec = resolver.cluster_spec()
  tasks = re.findall(r'/job:(\w+)/(?:replica:\d+/)?task:(\d+)', message)
  own = resolver.task_type, str(resolver.task_id)
  if others := [task for task in tasks if task != own]:
    job, task = others[0][0], int(others[0][1])
  elif is_chief(strategy):
    return 'another worker'
  else:
    # The leader, which would know of the others, has exited itself.
    job, task = 'chief' if 'chief' in spec.jobs else 'worker', 0
  return f'{job} {task} ({spec.task_address(job, task)})'


def _cause(error):
  """An error's reason, without what TensorFlow puts around it."""
  text = reason(error).removeprefix('Collective ops is aborted by: ')
  for rest in (' The error could be from a previous operation', ' [['):
    text = text.partition(rest)[0]
  return text
