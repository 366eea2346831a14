"""Names of accelerators to compile for, and what the compiler's text says."""

import re
import sys

import pytest
from support import tiny_config

from ddpm.runtime import targets
from ddpm.runtime.errors import UserError
from ddpm.runtime.targets import Target
from ddpm.runtime.topology import DEVICES
from ddpm.training import aot


@pytest.mark.parametrize(
    'text, expected',
    [
        ('h100', Target('cuda', 'h100', '8')),
        ('a100:1', Target('cuda', 'a100', '1')),
        ('v5e:2x2', Target('tpu', 'v5e', '2x2')),
        ('v4:2x2x1', Target('tpu', 'v4', '2x2x1')),
    ],
)
def test_parse(text, expected):
  assert targets.parse(text) == expected


@pytest.mark.parametrize('text', ['', 'h100:9', 'v5e', 'v9:2x2', '8xh100'])
def test_refuses(text):
  with pytest.raises(ValueError, match=f"compile_for is '{text}', expected"):
    targets.parse(text)


@pytest.mark.parametrize('name', ['a100', 'h100'])
def test_gpus_are_those_of_the_data_sheets(name):
  target, device = targets.parse(name), DEVICES[name]
  assert target.memory == pytest.approx(device.memory, rel=0.08)
  bandwidth = re.search(r'memory_bandwidth: (\d+)', target.description)[1]
  assert float(bandwidth) == pytest.approx(device.bandwidth, rel=0.02)


# Shortened lines of compiled programs.
_PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, \
may-alias), {1}: (2, {}, may-alias) }, entry_computation_layout={...}
  %a = f32[10,4]{1,0:T(8,128)} all-reduce(f32[10,4]{1,0} %x), channel_id=1
  %b = (f32[4]{0}, bf16[6]{0}) all-reduce-start(f32[4]{0} %y, bf16[6]{0} %z)
  %c = (f32[4]{0}, bf16[6]{0}) all-reduce-done(%b)
  %d = f32[4]{0} custom-call(%y), custom_call_target="__cudnn$convForward"
  %e = f32[4]{0} custom-call(%y), custom_call_target="xla_python_gpu_callback"
  %f = token[] outfeed(%y, %token)
"""


def test_what_a_compiled_program_says():
  assert aot._all_reduces(_PROGRAM) == [160, 28]
  assert aot._not_aliased(_PROGRAM, ['a', 'b', 'c']) == ['b']
  assert aot._host_ops(_PROGRAM) == ['outfeed', 'xla_python_gpu_callback']


def test_the_largest_batch_is_found_by_bisection(monkeypatch):
  config = tiny_config(**{'train.batch_size': 4096})
  tried = []

  def compile_step(config, target):
    tried.append(config.train.batch_size)
    if config.train.batch_size > 1000:
      raise aot.TooLarge

  monkeypatch.setattr(aot, '_devices', lambda target: [None] * 8)
  monkeypatch.setattr(aot, 'compile_step', compile_step)
  largest = aot.largest_batch_size(config, targets.parse('h100'))
  assert 1000 * 15 / 16 <= largest <= 1000 and largest % 8 == 0
  assert len(tried) < 9


def test_without_the_compilers_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax', None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[aot\]'"):
    aot.compile_step(tiny_config(), targets.parse('v6e:2x2'))
