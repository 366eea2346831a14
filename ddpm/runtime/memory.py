"""The memory that this process may use."""

import os

from ddpm.runtime import cores


def total():
  """Bytes of the machine, or of the cgroup's limit if that is less.

  Containers and `systemd-run -p MemoryMax=` set the limit.
  """
  limits = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for folder in cores.cgroup_folders('memory'):
    for name in ('memory.max', 'memory.limit_in_bytes'):
      text = cores.read(f'{folder}/{name}')
      if text.isdigit():
        limits.append(int(text))
  return min(limits)
