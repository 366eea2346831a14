"""What the workers of a run are told when one is lost, or a device fails."""

import types

import pytest
import tensorflow as tf

from ddpm.runtime import workers
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import UserError


def in_a_cluster(cluster, task_type='worker', task_id=1):
  """Stands for the strategy of a task of a cluster."""
  resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
      tf.train.ClusterSpec(cluster), task_type=task_type, task_id=task_id
  )
  return types.SimpleNamespace(cluster_resolver=resolver)


WORKERS = {'worker': ['a:1', 'b:2']}
WITH_CHIEF = {'chief': ['c:3'], 'worker': ['a:1', 'b:2']}


@pytest.fixture
def several(monkeypatch):
  monkeypatch.setattr(workers, 'are_several', lambda strategy: True)


@pytest.mark.parametrize(
    'cluster, task_type, task_id, expected',
    [
        (WORKERS, 'worker', 0, True),
        (WORKERS, 'worker', 1, False),
        (WITH_CHIEF, 'chief', 0, True),
        (WITH_CHIEF, 'worker', 0, False),
        ({}, '', 0, True),
    ],
)
def test_is_chief(cluster, task_type, task_id, expected):
  strategy = in_a_cluster(cluster, task_type, task_id)
  assert workers.is_chief(strategy) == expected


def test_one_process_is_the_chief_and_has_nobody_to_ask():
  strategy = tf.distribute.OneDeviceStrategy('CPU:0')
  assert workers.is_chief(strategy)
  strategy.gather = None
  assert workers.gather(strategy, [4, 1]) == [[4, 1]]


@pytest.mark.usefixtures('several')
def test_what_each_worker_says():
  strategy = types.SimpleNamespace(
      run=lambda function, args: function(*args),
      gather=lambda row, axis: tf.concat([row, row + 1], axis),
  )
  assert workers.gather(strategy, [4, 1]) == [[4, 1], [5, 2]]


def caught(strategy, error):
  """What `explained` makes of an error."""
  with pytest.raises(Exception) as caught, workers.explained(strategy):
    raise error
  return caught.value


@pytest.mark.parametrize(
    'cluster, task_id, message, expected',
    [
        (WORKERS, 0, 'heartbeat of /job:worker/replica:0/task:1 is late',
         'worker 1 (b:2)'),
        (WORKERS, 0, 'heartbeat of /job:worker/task:1 is late',
         'worker 1 (b:2)'),
        (WITH_CHIEF, 0, 'lost /job:chief/replica:0/task:0', 'chief 0 (c:3)'),
        # The leader itself.
        (WORKERS, 1, 'cannot reach the leader', 'worker 0 (a:1)'),
        (WITH_CHIEF, 0, 'cannot reach the leader', 'chief 0 (c:3)'),
        # The leader does not blame itself.
        (WORKERS, 0, 'Socket closed', 'another worker'),
    ],
)  # fmt: skip
@pytest.mark.usefixtures('several')
def test_a_lost_worker_has_name_and_address(
    cluster, task_id, message, expected
):
  error = tf.errors.UnavailableError(None, None, message)
  interrupted = caught(in_a_cluster(cluster, task_id=task_id), error)
  assert isinstance(interrupted, Interrupted)
  assert str(interrupted).startswith(f'{expected} has exited')


_ABORTED = 'Collective ops is aborted by: '
_NCCL = f'{_ABORTED}Error invoking NCCL: '


# Codes and texts that TensorFlow 2.21 and NCCL 2 have for lost workers.
@pytest.mark.parametrize(
    'code, text',
    [
        (tf.errors.UnavailableError, 'Socket closed'),
        (tf.errors.UnavailableError, f'{_ABORTED}recvmsg:Connection reset by'
         ' peer Additional GRPC error information from remote target'
         ' /job:worker/replica:0/task:0 while calling'
         ' /tensorflow.WorkerService/CompleteInstance'),
        (tf.errors.AbortedError, f'{_ABORTED}Error reported from'
         ' /job:worker/task:0: /job:worker/replica:0/task:0 unexpectedly tried'
         ' to connect with a different incarnation.'),
        (tf.errors.FailedPreconditionError, '/job:worker/replica:0/task:0'
         " current incarnation doesn't match with one in the group."),
        (tf.errors.InternalError, '/job:worker/replica:0/task:0 heartbeat'
         ' timeout. This indicates that the remote task has failed'),
        (tf.errors.InvalidArgumentError, f'{_ABORTED}Task with'
         ' task_name=/job:worker/replica:0/task:1 must be registered before'
         ' sending heartbeat messages. The service might have restarted'),
        (tf.errors.DeadlineExceededError, 'Barrier timed out.'),
        (tf.errors.UnknownError, f'{_ABORTED}the connection broke'),
        (tf.errors.InternalError, 'NCCL: remote process exited or there was a'
         ' network error'),
        (tf.errors.UnknownError, f'{_NCCL}remote process exited or there was a'
         ' network error'),
    ],
)  # fmt: skip
@pytest.mark.usefixtures('several')
def test_a_lost_worker(code, text):
  interrupted = caught(in_a_cluster(WORKERS), code(None, None, text))
  assert isinstance(interrupted, Interrupted)
  assert str(interrupted).startswith('worker 0 (a:1) has exited')


@pytest.mark.parametrize('cause', [
    'unhandled system error (run with NCCL_DEBUG=INFO for details)',
    'unhandled cuda error (run with NCCL_DEBUG=INFO for details)',
    'internal error - please report this issue to the NCCL developers',
    'invalid usage (run with NCCL_DEBUG=WARN for details)',
])  # fmt: skip
@pytest.mark.parametrize('processes', [1, 2])
def test_nccl_that_cannot_communicate(monkeypatch, processes, cause):
  monkeypatch.setattr(workers, 'are_several', lambda _: processes > 1)
  text = (
      f'{_NCCL}{cause}\nThe error could be from a previous operation. Restart'
      ' your program to reset. [Op:__inference_f]'
  )
  error = caught(
      in_a_cluster(WORKERS), tf.errors.InternalError(None, None, text)
  )
  assert isinstance(error, UserError)
  assert f'fails (Error invoking NCCL: {cause}): rerun with' in str(error)
  assert 'NCCL_DEBUG=INFO, which logs the cause' in str(error)


def test_a_device_without_enough_memory():
  text = (
      'OOM when allocating tensor with shape[8,512] on GPU:0 by allocator'
      ' GPU_0_bfc\n\t [[{{node conv}}]]\nHint: If you want to see a list'
  )
  error = caught(None, tf.errors.ResourceExhaustedError(None, None, text))
  assert isinstance(error, UserError)
  assert '(OOM when allocating tensor with shape[8,512] on GPU:0 by' in str(
      error
  )
  assert 'GPU_0_bfc): set train.remat, raise train.accum' in str(error)


@pytest.mark.parametrize(
    'processes, error',
    [
        (1, tf.errors.UnavailableError(None, None, f'{_ABORTED}of no use')),
        (2, tf.errors.InvalidArgumentError(None, None, f'{_ABORTED}a shape')),
        (2, tf.errors.InternalError(None, None, 'out of order')),
    ],
)
def test_what_is_no_lost_worker_is_left_as_it_is(monkeypatch, processes, error):
  monkeypatch.setattr(workers, 'are_several', lambda _: processes > 1)
  assert caught(in_a_cluster(WORKERS), error) is error


@pytest.mark.parametrize('is_done', [True, False])
@pytest.mark.parametrize('chief', [True, False])
def test_the_chief_goes_first(chief, is_done, monkeypatch, caplog):
  caplog.set_level('INFO', 'absl')
  calls = []
  monkeypatch.setattr(workers, 'is_chief', lambda strategy: chief)
  monkeypatch.setattr(
      workers, 'gather', lambda strategy, numbers: calls.append('all are here')
  )
  workers.chief_first(
      None, lambda: is_done, lambda: calls.append('done'), 'waiting'
  )
  assert calls == (
      ['done', 'all are here'] if chief else ['all are here', 'done']
  )
  assert ('waiting' in caplog.messages) == (not chief and not is_done)
