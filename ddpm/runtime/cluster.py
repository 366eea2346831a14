"""What TF_CONFIG says."""

import json
import os

from ddpm.runtime.errors import UserError


def this_host():
  """Number of this host, and of how many, as TF_CONFIG says; else 0, 1.

  TF_CONFIG is taken out of the environment: TensorFlow would have the hosts
  meet, and they need not.

  Raises:
    UserError: TF_CONFIG does not say it.
  """
  text = os.environ.pop('TF_CONFIG', None)
  if not text:
    return 0, 1
  try:
    config = json.loads(text)
    (addresses,) = config['cluster'].values()
    host, hosts = config['task']['index'], len(addresses)
    if host not in range(hosts):
      raise ValueError(host)
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
        f'TF_CONFIG is {text}, expected such as {{"cluster": {{"worker":'
        ' ["host0", "host1"]}, "task": {"type": "worker", "index": 0}}'
    ) from e
  return host, hosts
