"""Predicts a step on devices that are not there: `--dry_run --topology`.

The assumptions, which launch/README.md states to the user:

- The gradient takes as long as its FLOPs, of which a device reaches UTILIZATION
  of its peak, or as its memory traffic, if that is known and takes longer.
- The update is bound by memory.
- The all-reduce is a ring, after the gradient: each device sends and receives
  2 (n - 1) / n times the vector (Patarasuk and Yuan 2009).
"""

import math
import re
import typing

# Of the peak: Ho et al. 2020, appendix B, trained at 2,688 images/s on a TPU
# v3-8 (492 TFLOP/s), which is 0.2 of it for the FLOPs of that network.
UTILIZATION = 0.2


class Device(typing.NamedTuple):
  """A kind of device, by its data sheet.

  Attributes:
    half: peak FLOP/s of dense products in bfloat16 or float16.
    tf32: the same in what the precision tf32 is there: TF32 on GPUs that have
      it, bfloat16 on TPUs.
    float32: the same in float32; on TPUs as 6 products in bfloat16.
    memory: bytes.
    bandwidth: of the memory, bytes/s.
    link: to the other devices of its host or slice, bytes/s each way.
    network: of a host to other hosts, bytes/s each way; on TPUs `link`.
    tensor_cores: that a TPU's name counts for one device; 0 for GPUs.
  """

  half: float
  tf32: float
  float32: float
  memory: float
  bandwidth: float
  link: float
  network: float
  tensor_cores: int = 0

  def peak(self, precision):
    """Peak FLOP/s in one of `precision.PRECISIONS`."""
    return {'tf32': self.tf32, 'float32': self.float32}.get(
        precision, self.half
    )


def _tpu(flops, memory, bandwidth, link, tensor_cores):
  """A TPU; `flops` in bfloat16, the only format that it multiplies in."""
  return Device(
      flops, flops, flops / 6, memory, bandwidth, link, link, tensor_cores
  )


DEVICES = {
    # 8 per host, with 1 x 100, 8 x 200 and 8 x 400 Gb/s.
    'v100': Device(125e12, 15.7e12, 15.7e12, 32e9, 0.9e12, 150e9, 12.5e9),
    'a100': Device(312e12, 156e12, 19.5e12, 80e9, 2.04e12, 300e9, 200e9),
    'h100': Device(989e12, 495e12, 67e12, 80e9, 3.35e12, 450e9, 400e9),
    'h200': Device(989e12, 495e12, 67e12, 141e9, 4.8e12, 450e9, 400e9),
    'v4': _tpu(275e12, 32e9, 1.23e12, 300e9, 2),
    'v5e': _tpu(197e12, 16e9, 0.82e12, 200e9, 1),
    'v5p': _tpu(459e12, 95e9, 2.77e12, 600e9, 2),
    'v6e': _tpu(918e12, 32e9, 1.64e12, 448e9, 1),
}


def device_named(name):
  """The `Device` of a product's name, 'NVIDIA H100 80GB HBM3', or None.

  PCIe and NVL cards, and parts of a GPU (MIG), have other peaks than those of
  the table.
  """
  words = re.findall('[a-z0-9]+', name.lower())
  if {'pcie', 'nvl', 'mig'} & set(words):
    return None
  return next((DEVICES[word] for word in words if word in DEVICES), None)


class Topology(typing.NamedTuple):
  """Devices and how they are connected.

  Attributes:
    hosts: number of hosts; 1 for a TPU slice, whose links connect all.
    per_host: devices of each.
    device: `Device`.
  """

  hosts: int
  per_host: int
  device: Device

  @property
  def devices(self):
    return self.hosts * self.per_host


def parse(text):
  """Makes a `Topology` of '8xh100', '32x8xa100' or 'v5e-256'.

  Raises:
    ValueError: it is none.
  """
  gpus = re.fullmatch(r'(?:([1-9]\d*)x)?([1-9]\d*)x([a-z]\w*)', text)
  tpus = re.fullmatch(r'(v\w+)-([1-9]\d*)', text)
  name = gpus[3] if gpus else tpus[1] if tpus else None
  device = DEVICES.get(name)
  if device is None or bool(device.tensor_cores) != bool(tpus):
    raise ValueError(
        f'topology is {text!r}, expected one such as 8xh100 (one host),'
        ' 32x8xa100 (32 hosts with 8 each) or v5e-256 (a TPU slice), of: '
        + ', '.join(DEVICES)
    )
  if gpus:
    return Topology(int(gpus[1] or 1), int(gpus[2]), device)
  chips = math.ceil(int(tpus[2]) / device.tensor_cores)
  return Topology(1, chips, device)


class Prediction(typing.NamedTuple):
  """Of one step.

  Attributes:
    gradient: seconds.
    all_reduce: seconds.
    update: seconds.
    network_bytes: that a device sends, and receives, for the all-reduce.
  """

  gradient: float
  all_reduce: float
  update: float
  network_bytes: float

  @property
  def seconds(self):
    return self.gradient + self.all_reduce + self.update

  @property
  def efficiency(self):
    """Speed of the devices, over their number times that of one alone."""
    return (self.gradient + self.update) / self.seconds


def predict(
    topology,
    *,
    flops,
    update_bytes,
    reduced_bytes,
    precision,
    accessed_bytes=0,
):
  """Predicts a step.

  Args:
    topology: `Topology`.
    flops: of a replica's gradient.
    update_bytes: memory that the update reads and writes.
    reduced_bytes: length of the vector that is all-reduced.
    precision: of the products, one of `precision.PRECISIONS`.
    accessed_bytes: memory that gradient and update read and write; 0 if that is
      not known.

  Returns:
    `Prediction`.
  """
  device, n = topology.device, topology.devices
  network_bytes = 2 * (n - 1) / n * reduced_bytes
  link = device.link
  if topology.hosts > 1:
    link = min(link, device.network)
  return Prediction(
      gradient=max(
          flops / (UTILIZATION * device.peak(precision)),
          (accessed_bytes - update_bytes) / device.bandwidth,
      ),
      all_reduce=network_bytes / link,
      update=update_bytes / device.bandwidth,
      network_bytes=network_bytes,
  )
