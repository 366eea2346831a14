"""What slows a machine down, in words."""

import os

import pytest
import tensorflow as tf

from ddpm.runtime import cores
from ddpm.runtime import devices
from ddpm.runtime import hindrances


@pytest.fixture
def healthy(monkeypatch):
  """8 cores with AVX2 and oneDNN, and nothing else that runs."""
  monkeypatch.setattr(hindrances.platform, 'machine', lambda: 'x86_64')
  monkeypatch.setattr(devices, 'has_one_dnn', lambda: True)
  files = {'/proc/cpuinfo': 'x : y\nflags : fpu avx avx2\nbugs :'}
  monkeypatch.setattr(cores, 'read', lambda path: files.get(path, ''))
  monkeypatch.setattr(os, 'cpu_count', lambda: 8)
  monkeypatch.setattr(cores, 'affinity', lambda: 8)
  monkeypatch.setattr(cores, 'cgroup_quota', lambda: None)
  return files


def phrases():
  strategy = tf.distribute.OneDeviceStrategy('CPU:0')
  return hindrances.Hindrances(strategy).so_far()


def test_nothing_to_say(healthy):
  assert phrases() == []


def test_settings_and_limits(healthy, monkeypatch):
  healthy['/proc/cpuinfo'] = 'flags : fpu avx\n'
  monkeypatch.setattr(devices, 'has_one_dnn', lambda: False)
  monkeypatch.setattr(cores, 'affinity', lambda: 4)
  assert phrases() == [
      'oneDNN is off (TF_ENABLE_ONEDNN_OPTS=0)', 'a processor without AVX2',
      '4 of 8 cores (CPU affinity)',
  ]  # fmt: skip
  monkeypatch.setattr(cores, 'cgroup_quota', lambda: 1.5)
  assert phrases()[-1] == 'a quota of 1.5 of 8 cores (cgroup)'


def test_other_programs(healthy, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(hindrances.time, 'monotonic', lambda: now[0])
  tick = os.sysconf('SC_CLK_TCK')

  def use(seconds):
    busy = int((100 + seconds) * tick)
    healthy['/proc/stat'] = f'cpu  {busy} 0 0 50 0 0 0 0 0 0\ncpu0 1 1'

  watch = None
  for others, expected in ((30, ['other programs, which use 3.0 of 8 cores']),
                           (1, [])):  # fmt: skip
    use(0)
    watch = hindrances.Hindrances(tf.distribute.OneDeviceStrategy('CPU:0'))
    now[0] += 10
    use(others)
    assert watch.so_far() == expected


def test_other_programs_on_idle_cores_are_no_hindrance(healthy, monkeypatch):
  monkeypatch.setattr(cores, 'affinity', lambda: 2)
  seconds = iter([0.0, 30.0])
  monkeypatch.setattr(hindrances, '_others_seconds', lambda: next(seconds))
  times = iter([0.0, 10.0])
  monkeypatch.setattr(hindrances.time, 'monotonic', lambda: next(times))
  assert phrases() == ['2 of 8 cores (CPU affinity)']


def test_of_accelerators_nothing_is_said(healthy, monkeypatch):
  monkeypatch.setattr(devices, 'has_one_dnn', lambda: False)
  monkeypatch.setattr(devices, 'kind', lambda strategy: 'GPU')
  assert phrases() == []
