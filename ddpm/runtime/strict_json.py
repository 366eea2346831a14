"""JSON that every reader takes: without NaN and Infinity."""

import json
import math


def dumps(obj, **kwargs):
  """`json.dumps`, with null for floats that are not finite.

  RFC 8259 has no NaN and no Infinity, which Python writes nevertheless.

  Args:
    obj: dicts, lists, tuples, strings, numbers, bools and None.
    **kwargs: of `json.dumps`.
  """
  return json.dumps(_finite(obj), allow_nan=False, **kwargs)


def _finite(value):
  if isinstance(value, dict):
    return {key: _finite(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
