"""Cores by affinity and by cgroups, from files as Linux has them."""

import os

import pytest

from ddpm.runtime import cores

V1 = '4:cpu,cpuacct:/docker/1f\n3:cpuset:/\n'


@pytest.fixture
def linux(tmp_path, monkeypatch):
  """Writes a cgroup file and others; 64 cores by affinity."""
  monkeypatch.setattr(cores, '_PROC', f'{tmp_path}/proc')
  monkeypatch.setattr(cores, '_CGROUPS', f'{tmp_path}/cgroup')
  monkeypatch.setattr(
      os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False
  )

  def write(membership, files):
    files = {'proc/self/cgroup': membership} | {
        f'cgroup/{name}': text for name, text in files.items()
    }
    for name, text in files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)

  return write


@pytest.mark.parametrize(
    'membership, files, quota, count',
    [
        # No cgroups, no limit.
        ('', {}, None, 64),
        ('0::/\n', {'cpu.max': 'max 100000\n'}, None, 64),
        # A container with its own namespace.
        ('0::/\n', {'cpu.max': '200000 100000\n'}, 2, 2),
        # Fractions are rounded up: the rest of a core is used, too.
        ('0::/\n', {'cpu.max': '150000 100000\n'}, 1.5, 2),
        ('0::/\n', {'cpu.max': '10000 100000\n'}, 0.1, 1),
        # More than the machine has.
        ('0::/\n', {'cpu.max': '9900000 100000\n'}, 99, 64),
        # The smallest on the way up.
        ('0::/user/run.scope\n',
         {'user/cpu.max': '400000 100000',
          'user/run.scope/cpu.max': 'max 100000'}, 4, 4),
        ('0::/user/run.scope\n',
         {'user/cpu.max': '400000 100000',
          'user/run.scope/cpu.max': '300000 100000'}, 3, 3),
        # Version 1, in the host's folder or, within a container, at the root.
        (V1, {'cpu,cpuacct/docker/1f/cpu.cfs_quota_us': '100000',
              'cpu,cpuacct/docker/1f/cpu.cfs_period_us': '50000'}, 2, 2),
        (V1, {'cpu/cpu.cfs_quota_us': '200000',
              'cpu/cpu.cfs_period_us': '100000'}, 2, 2),
        (V1, {'cpu/cpu.cfs_quota_us': '-1',
              'cpu/cpu.cfs_period_us': '100000'}, None, 64),
        # Both versions, with version 2 beside.
        (V1 + '0::/\n', {'unified/cpu.max': '300000 100000'}, 3, 3),
        # Nonsense is no limit.
        ('0::/\n', {'cpu.max': 'x y\n'}, None, 64),
        ('0::/\n', {'cpu.max': '1000\n'}, None, 64),
    ],
)  # fmt: skip
def test_quota(linux, membership, files, quota, count):
  linux(membership, files)
  assert cores.cgroup_quota() == quota
  assert cores.count() == count


def test_affinity(monkeypatch):
  monkeypatch.setattr(
      os, 'sched_getaffinity', lambda pid: {1, 5, 6}, raising=False
  )
  assert cores.affinity() == 3
  # macOS
  monkeypatch.delattr(os, 'sched_getaffinity')
  monkeypatch.setattr(os, 'cpu_count', lambda: None)
  assert cores.affinity() == 1
