"""The cluster that TF_CONFIG describes."""

import json
import os
import typing

from ddpm.runtime.errors import UserError

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


def this_host():
  """This host's number and the number of hosts, by TF_CONFIG; else 0, 1.

  Removes TF_CONFIG from the environment: with it TensorFlow would make the
  hosts wait for one another, which sampling does not need.

  Raises:
    UserError: as `read`.
  """
  cluster = read()
  os.environ.pop('TF_CONFIG', None)
  return (cluster.index, len(cluster.tasks)) if cluster else (0, 1)
