"""The cores that this process may use."""

import math
import os

_PROC, _CGROUPS = '/proc', '/sys/fs/cgroup'


def count():
  """Cores by affinity and by the cgroup's quota, rounded up; at least 1."""
  allowed, quota = affinity(), cgroup_quota()
  return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def affinity():
  """Cores that this process may run on."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1  # macOS


def cgroup_quota():
  """CPU seconds per second that Linux allows this process; None for no limit.

  The smallest quota of the process's cgroup and those above it, in version 2
  (`cpu.max`) and version 1 (`cpu.cfs_quota_us`). Containers and
  `systemd-run -p CPUQuota=` set them.
  """
  quotas = [
      quota
      for folder in cgroup_folders('cpu')
      if (quota := _quota_of(folder)) is not None
  ]
  return min(quotas, default=None)


def cgroup_folders(controller):
  """Folders of the process's cgroups for a controller, and of all above them.

  Args:
    controller: 'cpu' or 'memory'.
  """
  for line in read(f'{_PROC}/self/cgroup').splitlines():
    number, controllers, path = line.split(':', 2)
    if number == '0':  # Version 2; `unified` beside version 1.
      mounts = [_CGROUPS, f'{_CGROUPS}/unified']
    elif controller in controllers.split(','):
      mounts = [f'{_CGROUPS}/{controllers}', f'{_CGROUPS}/{controller}']
    else:
      continue
    # In a container the path may be the host's, and only its root is there.
    parts = [part for part in path.split('/') if part]
    for mount in mounts:
      for depth in range(len(parts) + 1):
        yield '/'.join([mount, *parts[:depth]])


def _quota_of(folder):
  """Quota of one cgroup, None if it has none."""
  quota, *period = read(f'{folder}/cpu.max').split() or ['max']
  if quota == 'max':
    quota = read(f'{folder}/cpu.cfs_quota_us') or '-1'
    period = [read(f'{folder}/cpu.cfs_period_us')]
  try:
    quota = float(quota) / float(period[0])
  except (IndexError, ValueError, ZeroDivisionError):
    return None
  return quota if quota > 0 else None


def read(path):
  """Text of one of the kernel's files, '' if there is none."""
  try:
    with open(path) as f:
      return f.read().strip()
  except OSError:
    return ''
