"""The training step on the GPUs or TPUs of this machine.

  python tests/benchmarks/accelerator.py

Prints two Markdown tables: the first losses beside the CPU's, and, for Ho et
al.'s networks for CIFAR-10 (batch 128) and for 256 x 256 (batch 16), images/s
in calls of 1, 10 and 100 steps, the share of the peak FLOP/s (MFU), memory and
the time from the start of the process to the end of the first step. PyTorch is
measured beside it where it is installed, with diffusers, on one GPU. One
process after the other. Without a GPU or TPU it says so.

For comparison: Ho et al. trained the first network at 2,688 images/s on a TPU
v3-8 in 2020.

`--precisions`, `--xla` and `--networks` select rows; `--peak=v5e` names a
device that is not recognized. `--on=CPU --networks=tiny` tries the script.
"""

import argparse
import importlib.util
import statistics
import time

import step as step_benchmark
import turns

NETWORKS = {
    'cifar10': {'train.batch_size': 128},
    '256': {
        'data.image_size': 256,
        'model.channel_multipliers': (1, 1, 2, 2, 4, 4),
        'model.dropout': 0.0,
        'train.batch_size': 16,
    },
    # To try the script on a CPU.
    'tiny': step_benchmark.NETWORKS['mnist'] | {
        'model.channels': 8,
        'model.channel_multipliers': (1, 2),
        'train.batch_size': 16,
    },
}
XLA = {'on': True, 'off': False}
_STEPS_PER_CALL = (1, 10, 100)
_SECONDS = 5.0
_BEGAN = time.monotonic()


def make_config(network, precision, *, xla, kind):
  from configs import cifar10

  config = cifar10.get_config()
  config.update_from_flattened_dict(NETWORKS[network])
  config.data.random_flip = False
  config.precision = precision
  config.jit_compile = XLA[xla]
  config.train.steps_per_loop = max(_STEPS_PER_CALL)
  if kind == 'TPU':
    config.distribute.strategy = 'tpu'
  return config


def import_tensorflow():
  from ddpm.runtime import environment

  environment.import_tensorflow()
  import tensorflow as tf

  return tf


def find_devices():
  """Says what there is: its kind, number and name."""
  tf = import_tensorflow()
  for kind in ('TPU', 'GPU'):
    if found := tf.config.list_physical_devices(kind):
      details = tf.config.experimental.get_device_details(found[0])
      name = details.get('device_name', kind)
      turns.serve({'kind': kind, 'number': len(found), 'name': name}, dict)
      return
  turns.serve({'kind': 'CPU', 'number': 1, 'name': 'CPU'}, dict)


def rates(run_steps, batch_size):
  """Images/s by steps per call: medians of calls for some seconds."""
  results = {}
  for number in _STEPS_PER_CALL:
    seconds = []
    while len(seconds) < 3 or sum(seconds) < _SECONDS:
      began = time.monotonic()
      run_steps(number)
      seconds.append(time.monotonic() - began)
    results[f'{number}'] = number * batch_size / statistics.median(seconds)
  return results


def train_ours(network, precision, xla, kind):
  tf = import_tensorflow()
  from ddpm.training import cost

  config = make_config(network, precision, xla=xla, kind=kind).lock()
  trainer = step_benchmark.make_trainer(config)
  run_steps = step_benchmark.steps_of(trainer)
  run_steps(1)
  first_step = time.monotonic() - _BEGAN
  size = trainer.replica_batch_size

  def measure():
    results = rates(run_steps, config.train.batch_size)
    results['first_step'] = first_step
    counted = cost.of_step(config, size, jit_compile=xla == 'on')
    results['flops_per_image'] = counted.flops / size
    results['memory'] = sum(
        tf.config.experimental.get_memory_info(gpu.name)['peak']
        for gpu in tf.config.list_logical_devices('GPU')
    )
    return results

  turns.serve(trainer.devices, measure)


def losses(network, kind):
  """The first losses and gradient norms of a small batch, in float32."""
  tf = import_tensorflow()
  if kind == 'CPU':
    tf.config.set_visible_devices([], 'GPU')
  config = make_config(network, 'float32', xla='off', kind=kind)
  config.train.batch_size = 16
  config.train.steps_per_loop = 1
  if kind == 'CPU':
    config.distribute.strategy = 'one_device'
  trainer = step_benchmark.make_trainer(config.lock())

  def measure():
    results = {}
    for step in range(1, 4):
      _, _, metrics = trainer.run_until(step)
      results[f'loss {step}'] = metrics['loss']
      results[f'gradient norm {step}'] = metrics['gradient_norm']
    return results

  turns.serve(trainer.devices, measure)


def train_torch(network, precision, compiled, kind):
  import torch

  device = 'cuda' if kind == 'GPU' else 'cpu'
  tf32 = precision != 'float32'
  torch.backends.cuda.matmul.allow_tf32 = tf32
  torch.backends.cudnn.allow_tf32 = tf32
  torch.backends.cudnn.benchmark = True
  config = make_config(network, precision, xla='off', kind=kind).lock()
  dtype = {
      'mixed_bfloat16': torch.bfloat16, 'mixed_float16': torch.float16
  }.get(precision)  # fmt: skip
  trainer = step_benchmark.TorchTrainer(
      config,
      device=device,
      channels_last=True,
      compiled=compiled == 'compiled',
      dtype=dtype,
  )

  def run_steps(number):
    for _ in range(number):
      trainer.step()
    if kind == 'GPU':
      torch.cuda.synchronize()

  run_steps(1)
  first_step = time.monotonic() - _BEGAN

  def measure():
    results = rates(run_steps, config.train.batch_size)
    results['first_step'] = first_step
    results['memory'] = (
        torch.cuda.max_memory_allocated() if kind == 'GPU' else 0
    )
    return results

  turns.serve(f'PyTorch, channels_last, {compiled}', measure)


def check_numbers(network, kind):
  workers = [
      turns.Worker(__file__, f'losses:{network}:{each}')
      for each in ('CPU', kind)
  ]
  cpu, device = turns.measure(workers, turns=1)
  print(f'\n| {network}, batch 16 | CPU | {kind} | relative difference |')
  print('|---|---|---|---|')
  for name, value in cpu.items():
    difference = abs(device[name] / value - 1)
    print(f'| {name} | {value:.6f} | {device[name]:.6f} | {difference:.1e} |')


def compare(network, args, kind, number, peaks):
  print(
      f'\n| {network} | precision | XLA, or PyTorch | '
      + ' | '.join(f'images/s, calls of {n}' for n in _STEPS_PER_CALL)
      + ' | MFU | peak memory | first step after |\n'
      + '|---' * 9
      + '|',
      flush=True,
  )
  for precision in args.precisions.split(','):
    ours = [f'ours:{network}:{precision}:{xla}' for xla in args.xla.split(',')]
    theirs = []
    if kind != 'TPU' and has_torch():
      theirs = [
          f'torch:{network}:{precision}:{how}' for how in ('eager', 'compiled')
      ]
    flops = None
    for name in ours + theirs:
      worker = turns.Worker(__file__, f'{name}:{kind}')
      (result,) = turns.measure([worker], turns=1)
      flops = result.get('flops_per_image', flops)
      peak = peaks and number_of(name, number) * peaks.peak(precision)
      best = max(result[f'{n}'] for n in _STEPS_PER_CALL)
      share = f'{flops * best / peak:.1%}' if peak else '-'
      print(
          f'| {worker.ready} | {precision} | {name.split(":")[3]} | '
          + ' | '.join(f'{result[f"{n}"]:.1f}' for n in _STEPS_PER_CALL)
          + f' | {share} | {result["memory"] / 2**30:.2f} GiB |'
          f' {result["first_step"]:.1f} s |',
          flush=True,
      )


def number_of(name, number):
  """Devices that a row uses: PyTorch's uses one."""
  return number if name.startswith('ours') else 1


def has_torch():
  return all(map(importlib.util.find_spec, ('torch', 'diffusers')))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--networks', default='cifar10,256')
  parser.add_argument(
      '--precisions', default='float32,tf32,mixed_bfloat16,mixed_float16'
  )
  parser.add_argument('--xla', default=','.join(XLA))
  parser.add_argument('--on')
  parser.add_argument('--peak')
  parser.add_argument('--worker')
  args = parser.parse_args()
  if args.worker:
    what, *rest = args.worker.split(':')
    workers = {
        'devices': find_devices,
        'losses': losses,
        'ours': train_ours,
        'torch': train_torch,
    }
    workers[what](*rest)
    return
  worker = turns.Worker(__file__, 'devices')
  worker.close()
  found = worker.ready
  kind = args.on or found['kind']
  if kind == 'CPU' and not args.on:
    print('There is no GPU or TPU here.')
    return
  print(f'{found["number"]} x {found["name"]}')
  from ddpm.runtime import topology

  named = args.peak or next(
      (name for name in topology.DEVICES if name.upper() in found['name']), None
  )
  peaks = topology.DEVICES.get(named)
  for network in args.networks.split(','):
    check_numbers(network, kind)
    compare(network, args, kind, found['number'], peaks)


if __name__ == '__main__':
  main()
