"""What makes a CPU slower than it could be."""

import os
import platform
import time

from ddpm.runtime import cores
from ddpm.runtime import devices
from ddpm.runtime import environment


class Hindrances:
  """Watches this machine from now on.

  Args:
    strategy: `tf.distribute.Strategy`. Of GPUs and TPUs nothing is said.
  """

  def __init__(self, strategy):
    self._on_cpu = devices.kind(strategy) == 'CPU'
    self._began = time.monotonic()
    self._others = _others_seconds()

  def so_far(self):
    """What has slowed this process down, a list of phrases."""
    if not self._on_cpu:
      return []
    phrases = [*_settings(), *_limits()]
    seconds = time.monotonic() - self._began
    others = (_others_seconds() - self._others) / seconds
    # What the others leave idle does not slow this process down.
    installed = os.cpu_count() or 1
    if others + cores.count() > installed + 0.25:
      phrases.append(
          f'other programs, which use {others:.1f} of {installed} cores'
      )
    return phrases


def _settings():
  if platform.machine() not in environment.X86:
    return
  if not devices.has_one_dnn():
    yield 'oneDNN is off (TF_ENABLE_ONEDNN_OPTS=0)'
  lines = cores.read('/proc/cpuinfo').splitlines()
  flags = next((line for line in lines if line.startswith('flags')), None)
  if flags and 'avx2' not in flags.split():
    yield 'a processor without AVX2'


def _limits():
  installed, allowed = os.cpu_count() or 1, cores.affinity()
  quota = cores.cgroup_quota()
  if quota is not None and quota < allowed:
    yield f'a quota of {quota:.3g} of {installed} cores (cgroup)'
  elif allowed < installed:
    yield f'{allowed} of {installed} cores (CPU affinity)'
  elif installed == 1:
    yield 'a single core'


def _others_seconds():
  """CPU seconds of all other processes since the machine started; 0 unknown."""
  line = cores.read('/proc/stat').partition('\n')[0].split()
  if line[:1] != ['cpu']:
    return 0.0
  user, nice, system, _, _, irq, softirq, steal = map(int, line[1:9])
  busy = user + nice + system + irq + softirq + steal
  own = os.times()
  return busy / os.sysconf('SC_CLK_TCK') - own.user - own.system
