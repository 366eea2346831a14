"""Predictions for devices that are not there."""

import pytest

from ddpm.runtime import topology


@pytest.mark.parametrize(
    'text, hosts, per_host, name',
    [
        ('8xh100', 1, 8, 'h100'),
        ('32x8xa100', 32, 8, 'a100'),
        ('v5e-256', 1, 256, 'v5e'),
        ('v4-8', 1, 4, 'v4'),  # TensorCores, two of which are one device
    ],
)
def test_names(text, hosts, per_host, name):
  expected = topology.Topology(hosts, per_host, topology.DEVICES[name])
  assert topology.parse(text) == expected


@pytest.mark.parametrize(
    'text', ['', '8', 'h100', '8xv5e', 'h100-8', '0xh100', '8xh100x2', '8xb9']
)
def test_other_names_are_refused(text):
  with pytest.raises(ValueError, match='expected one such as 8xh100'):
    topology.parse(text)


@pytest.mark.parametrize(
    'product, name',
    [
        ('NVIDIA H100 80GB HBM3', 'h100'),
        ('NVIDIA A100-SXM4-40GB', 'a100'),
        ('Tesla V100-SXM2-16GB', 'v100'),
    ],
)
def test_products(product, name):
  assert topology.device_named(product) is topology.DEVICES[name]


@pytest.mark.parametrize(
    'product',
    ['', 'NVIDIA H100 PCIe', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA L4'],
)
def test_other_products_have_no_known_peak(product):
  assert topology.device_named(product) is None


def predict(text, **kwargs):
  cost = {'flops': 1e12, 'update_bytes': 1e9, 'reduced_bytes': 4e8}
  precision = {'precision': 'tf32'}
  return topology.predict(topology.parse(text), **(cost | precision | kwargs))


def test_one_device_needs_no_network():
  step = predict('1xh100')
  assert step.all_reduce == step.network_bytes == 0
  assert step.efficiency == 1
  # 20 % of 495 TFLOP/s; 3.35 TB/s.
  assert step.gradient == pytest.approx(1e12 / 99e12)
  assert step.update == pytest.approx(1e9 / 3.35e12)
  assert step.seconds == step.gradient + step.update


def test_the_ring_is_as_fast_as_its_slowest_link():
  within, between = predict('8xh100'), predict('2x4xh100')
  assert within.network_bytes == between.network_bytes == 7 / 4 * 4e8
  assert within.all_reduce == pytest.approx(7e8 / 450e9)
  assert between.all_reduce == pytest.approx(7e8 / 400e9)
  assert between.efficiency < within.efficiency < 1


@pytest.mark.parametrize(
    'text, precision, slowdown',
    [
        ('8xh100', 'float32', 989 / 67),
        ('8xh100', 'tf32', 989 / 495),
        ('8xh100', 'mixed_float16', 1),
        ('v5e-8', 'float32', 6),
        ('v5e-8', 'tf32', 1),
    ],
)
def test_precisions_have_their_own_peaks(text, precision, slowdown):
  half = predict(text, precision='mixed_bfloat16')
  full = predict(text, precision=precision)
  assert full.gradient / half.gradient == pytest.approx(slowdown)


def test_a_gradient_may_be_bound_by_memory():
  known = predict('8xh100', accessed_bytes=1e9 + 3.35e11)
  assert known.gradient == pytest.approx(0.1)
  assert known.update == predict('8xh100').update
  # Little traffic: its FLOPs take longer.
  assert predict('8xh100', accessed_bytes=2e9) == predict('8xh100')
