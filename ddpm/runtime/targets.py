"""Accelerators that a step can be compiled for, without having them."""

import pathlib
import re
import typing

_GPUS = ('a100', 'h100')
_TPUS = ('v2', 'v3', 'v4', 'v5e', 'v5p', 'v6e')


class Target(typing.NamedTuple):
  """Devices to compile for.

  Attributes:
    platform: JAX's name, 'cuda' or 'tpu'.
    name: of the kind, 'h100' or 'v5e'.
    layout: '8' GPUs of one host; '2x2' TPUs.
  """

  platform: str
  name: str
  layout: str

  @property
  def description(self):
    """A GPU as XLA's compiler knows it, a GpuTargetConfigProto as text.

    The values are those of XLA's own, by NVIDIA's data sheets.
    """
    path = pathlib.Path(__file__).parent / 'gpus' / f'{self.name}.txtpb'
    return path.read_text()

  @property
  def memory(self):
    """Bytes of a GPU."""
    return int(re.search(r'device_memory_size: (\d+)', self.description)[1])


def parse(text):
  """Makes a `Target` of 'h100' (8 of them), 'h100:1' or 'v5e:2x2'.

  Raises:
    ValueError: it is none.
  """
  gpu = re.fullmatch(f'({"|".join(_GPUS)})(?::([1-8]))?', text)
  if gpu:
    return Target('cuda', gpu[1], gpu[2] or '8')
  tpu = re.fullmatch(rf'({"|".join(_TPUS)}):(\d+x\d+(?:x\d+)?)', text)
  if tpu:
    return Target('tpu', tpu[1], tpu[2])
  raise ValueError(
      f'compile_for is {text!r}, expected one such as h100 (a host with 8),'
      f' h100:1 or v5e:2x2 (a TPU slice), of: {", ".join(_GPUS + _TPUS)}'
  )
