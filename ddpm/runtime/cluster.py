"""The cluster that TF_CONFIG or Slurm describes."""

import json
import os
import typing

from etils import epy

from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  import tensorflow as tf

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]},'
    ' "task": {"type": "worker", "index": 0}}'
)


class Cluster(typing.NamedTuple):
  """Several processes that train or sample together.

  Attributes:
    tasks: (job, address) of each process, the chief first.
    index: of this process among them.
  """

  tasks: list
  index: int


def read():
  """Parses TF_CONFIG.

  Returns:
    `Cluster`, or None if TF_CONFIG is not set or names no cluster.

  Raises:
    UserError: it is not of TensorFlow's form, or has jobs other than chief and
      worker.
  """
  text = os.environ.get('TF_CONFIG')
  if not text:
    return None
  try:
    config = json.loads(text)
    jobs = config.get('cluster', {})
    if not jobs:
      return None
    if unknown := set(jobs) - {'chief', 'worker'}:
      raise UserError(
          f'TF_CONFIG has the job {min(unknown)}, expected only chief and'
          ' worker'
      )
    tasks = [
        (job, address) for job in ('chief', 'worker')
        for address in jobs.get(job, [])
    ]  # fmt: skip
    task, index = config['task'], int(config['task']['index'])
    (job,) = (task['type'],) if 'type' in task else jobs
    if index not in range(len(jobs[job])):
      raise IndexError(index)
    if job == 'worker':
      index += len(jobs.get('chief', []))
  except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
    raise UserError(
        f'TF_CONFIG is {text}, expected something like {_EXAMPLE}'
    ) from e
  return Cluster(tasks, index)


def join_slurm():
  """Sets TF_CONFIG, unless it is set, for a task of a Slurm step of several.

  The addresses are `SlurmClusterResolver`'s. It is not used by itself, as it
  orders nodes as text, n10 before n9, and takes Slurm's rank for a place in
  that order; and it fails without GPUs, which are up to Slurm here.

  Raises:
    UserError: it cannot read Slurm's list of nodes.
  """
  tasks = int(os.environ.get('SLURM_STEP_NUM_TASKS', 1))
  if tasks == 1 or 'TF_CONFIG' in os.environ:
    return
  try:
    # Jobs that share a node differ in their ports.
    port = 10000 + int(os.environ['SLURM_JOB_ID']) % 20000
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=port, gpus_per_node=tasks, gpus_per_task=1,
        auto_set_gpu=False,
    )  # fmt: skip
    workers = resolver.cluster_spec().as_dict()['worker']
    node = os.environ['SLURMD_NODENAME']
    first = workers.index(f'{node}:{port}')
    index = first + int(os.environ['SLURM_LOCALID'])
  except (RuntimeError, ValueError, KeyError) as e:
    raise UserError(
        f"Slurm's step cannot be read ({reason(e)}): set TF_CONFIG, or use"
        ' launch/multi_worker.sh'
    ) from e
  os.environ['TF_CONFIG'] = json.dumps({
      'cluster': {'worker': workers},
      'task': {'type': 'worker', 'index': index},
  })


def this_host():
  """This host's number and the number of hosts, by TF_CONFIG; else 0, 1.

  A task of a Slurm step is a host, too.

  Removes TF_CONFIG from the environment: with it TensorFlow would make the
  hosts wait for one another, which sampling does not need.

  Raises:
    UserError: as `read` and `join_slurm`.
  """
  join_slurm()
  cluster = read()
  os.environ.pop('TF_CONFIG', None)
  return (cluster.index, len(cluster.tasks)) if cluster else (0, 1)
