"""The memory that this process may use, and uses."""

import os
import resource

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


def peak():
  """Bytes that were in the machine's memory at most (peak resident set)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident():
  """Bytes that are in the machine's memory now; 0 if it does not say."""
  pages = cores.read('/proc/self/statm').split()[1:2]
  return int(pages[0]) * os.sysconf('SC_PAGE_SIZE') if pages else 0
