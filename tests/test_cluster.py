"""TF_CONFIG, as TensorFlow, Kubeflow and Vertex AI write it, and Slurm."""

import json
import os

import pytest

from ddpm.runtime import cluster
from ddpm.runtime.errors import UserError


@pytest.mark.parametrize(
    'jobs, task, expected',
    [
        ({'worker': ['a', 'b', 'c']}, {'type': 'worker', 'index': 2}, (2, 3)),
        ({'worker': ['a', 'b', 'c']}, {'index': '1'}, (1, 3)),
        (
            {'worker': ['b'], 'chief': ['a']},
            {'type': 'worker', 'index': 0},
            (1, 2),
        ),
        (
            {'worker': ['b'], 'chief': ['a']},
            {'type': 'chief', 'index': 0},
            (0, 2),
        ),
        ({}, {}, (0, 1)),
    ],
)
def test_this_host(monkeypatch, jobs, task, expected):
  config = {'cluster': jobs, 'task': task}
  monkeypatch.setenv('TF_CONFIG', json.dumps(config))
  assert cluster.this_host() == expected
  assert 'TF_CONFIG' not in os.environ
  assert cluster.this_host() == (0, 1)


def test_the_chief_comes_first(monkeypatch):
  config = {
      'cluster': {'worker': ['b', 'c'], 'chief': ['a']},
      'task': {'type': 'worker', 'index': 1},
  }
  monkeypatch.setenv('TF_CONFIG', json.dumps(config))
  tasks = [('chief', 'a'), ('worker', 'b'), ('worker', 'c')]
  assert cluster.read() == (tasks, 2)


@pytest.mark.parametrize(
    'text, message',
    [
        ('{', 'TF_CONFIG is {, expected something like {"cluster"'),
        ('[]', r'TF_CONFIG is \[\], expected something like'),
        ('{"cluster": {"worker": ["a"]}}', 'expected something like'),
        ('{"cluster": {"worker": ["a"]}, "task": {"index": 1}}', 'expected'),
        ('{"cluster": {"worker": ["a"]}, "task": {"index": -1}}', 'expected'),
        ('{"cluster": {"chief": ["a"], "worker": ["b"]}, "task": {"index": 0}}',
         'expected something like'),
        ('{"cluster": {"ps": ["a"], "worker": ["b"]}}', 'has the job ps, exp'),
        ('{"cluster": {"evaluator": ["a"]}}', 'has the job evaluator'),
    ],
)  # fmt: skip
def test_refuses(monkeypatch, text, message):
  monkeypatch.setenv('TF_CONFIG', text)
  with pytest.raises(UserError, match=message):
    cluster.read()


def slurm(monkeypatch, nodes, tasks, node, local):
  """The environment of a task, as Slurm 22.05 sets it."""
  monkeypatch.delenv('TF_CONFIG', raising=False)
  per_node = [int(n) for n in tasks.split(',')]
  for name, value in {
      'SLURM_JOB_ID': '20007',
      'SLURM_STEP_NODELIST': nodes,
      'SLURM_STEP_TASKS_PER_NODE': tasks,
      'SLURM_STEP_NUM_TASKS': str(sum(per_node)),
      'SLURM_PROCID': '0',
      'SLURMD_NODENAME': node,
      'SLURM_LOCALID': str(local),
  }.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    'nodes, tasks, node, local, workers, index',
    [
        # Not in the order of Slurm's ranks.
        ('n[9-10]', '1,1', 'n9', 0, ['n10:10007', 'n9:10007'], 1),
        ('n[9-10]', '1,1', 'n10', 0, ['n10:10007', 'n9:10007'], 0),
        ('a,b', '2,1', 'a', 1, ['a:10007', 'a:10008', 'b:10007'], 1),
        ('a,b', '2,1', 'b', 0, ['a:10007', 'a:10008', 'b:10007'], 2),
    ],
)
def test_a_step_of_slurm(
    monkeypatch, nodes, tasks, node, local, workers, index
):
  slurm(monkeypatch, nodes, tasks, node, local)
  cluster.join_slurm()
  assert cluster.read() == ([('worker', a) for a in workers], index)
  assert cluster.this_host() == (index, len(workers))


def test_a_step_of_slurm_with_one_task_is_no_cluster(monkeypatch):
  slurm(monkeypatch, 'a', '1', 'a', 0)
  cluster.join_slurm()
  assert cluster.read() is None


def test_tf_config_comes_before_slurm(monkeypatch):
  slurm(monkeypatch, 'a,b', '1,1', 'b', 0)
  monkeypatch.setenv('TF_CONFIG', '{}')
  cluster.join_slurm()
  assert cluster.read() is None


@pytest.mark.parametrize('nodes', ['n[1-2]x[1-2]', 'c,d'])
def test_what_slurm_says_cannot_be_read(monkeypatch, nodes):
  slurm(monkeypatch, nodes, '1,1', 'a', 0)
  with pytest.raises(UserError, match=r"Slurm's step cannot be read \("):
    cluster.join_slurm()
