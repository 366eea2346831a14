"""Notices from a cloud that it will soon take this machine away.

Google's metadata server: `instance/preempted` and `instance/maintenance-event`;
AWS's instance metadata: `spot/instance-action`.

https://docs.cloud.google.com/compute/docs/instances/create-use-spot
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import http.client
import os
import threading
import time
import urllib.error
import urllib.request

# Seconds between questions. Spot machines have 30 s (Google) or 120 s (AWS).
_PAUSE = 2.0
_TIMEOUT = 5.0


def watch(on_notice):
  """Calls a function once, on a thread, when a notice comes.

  A notice that is there from the start does not count: the program was started
  in spite of it, perhaps by a launch script.

  Args:
    on_notice: function (what: str), such as 'preemption by Google Cloud'.
  """
  if ask := _google() or _aws():
    threading.Thread(target=_listen, args=(ask, on_notice), daemon=True).start()


def _listen(ask, on_notice):
  known = None
  while True:
    try:
      notices = set(ask())
    # Metadata servers have hiccups.
    except (OSError, http.client.HTTPException):
      notices = known
    if known is None:
      known = notices
    elif new := notices - known:
      on_notice(new.pop())
      return
    time.sleep(_PAUSE)


def _google():
  # The variable is Google's own libraries'.
  host = os.environ.get('GCE_METADATA_HOST')
  if host is None and _vendor('product_name', 'Google'):
    host = 'metadata.google.internal'
  if host is None:
    return None

  def value(name):
    return _get(
        f'http://{host}/computeMetadata/v1/instance/{name}',
        {'Metadata-Flavor': 'Google'},
    )

  def ask():
    if value('preempted') == 'TRUE':
      yield 'preemption by Google Cloud'
    # A live migration does not end the process.
    if value('maintenance-event') == 'TERMINATE_ON_HOST_MAINTENANCE':
      yield 'maintenance by Google Cloud'

  return ask


def _aws():
  # The variable is AWS's own libraries'.
  root = os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT')
  if root is None and _vendor('sys_vendor', 'Amazon EC2'):
    root = 'http://169.254.169.254'
  if root is None:
    return None
  root = root.rstrip('/')

  def ask():
    token = _get(
        f'{root}/latest/api/token',
        {'X-aws-ec2-metadata-token-ttl-seconds': '60'},
        method='PUT',
    )
    try:
      _get(
          f'{root}/latest/meta-data/spot/instance-action',
          {'X-aws-ec2-metadata-token': token},
      )
    except urllib.error.HTTPError as e:
      if e.code != 404:  # None yet.
        raise
    else:
      yield 'a spot interruption by AWS'

  return ask


def _get(url, headers, *, method='GET'):
  request = urllib.request.Request(url, headers=headers, method=method)
  # Not through a proxy.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with opener.open(request, timeout=_TIMEOUT) as response:
    return response.read().decode().strip()


def _vendor(field, start):
  """Whether the machine says that it is a cloud's."""
  try:
    with open(f'/sys/class/dmi/id/{field}') as f:
      return f.read().startswith(start)
  except OSError:
    return False
