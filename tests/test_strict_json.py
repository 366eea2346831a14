"""What is written as JSON is JSON."""

import json

import numpy as np
import pytest

from ddpm.runtime import strict_json


def strict(text):
  """Reads JSON as a reader that knows no NaN."""
  return json.loads(text, parse_constant=pytest.fail)


def test_what_is_not_finite_is_null():
  value = {'a': float('nan'), 'b': [1.5, (np.inf, np.float64('-inf'), 2)]}
  assert strict(strict_json.dumps(value)) == {
      'a': None, 'b': [1.5, [None, None, 2]],
  }  # fmt: skip


def test_the_rest_is_as_json_writes_it():
  value = {'a': [1, 0.1, True, None, 'NaN', []], 'b': {'c': 1e-300}}
  for how in ({}, {'indent': 2}):
    assert strict_json.dumps(value, **how) == json.dumps(value, **how)
