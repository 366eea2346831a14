"""TF_CONFIG, as TensorFlow, Kubeflow and Vertex AI write it."""

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
