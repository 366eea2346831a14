"""The training step against PyTorch's, with the same network.

  python tests/benchmarks/step.py

Float32, Adam, clipping and an EMA: ours as ddpm.main runs it on this machine,
and PyTorch's by a plain loop over diffusers' network: eager, in channels_last,
compiled, and data parallel with one process per core. All take turns; prints a
Markdown table of images/s (medians), and of their share of this machine's peak,
which is what PyTorch's product of two large matrices reaches. Nothing else
should run meanwhile. It needs `pip install -e '.[test,oracle]'`.

  python tests/benchmarks/step.py --profile=cifar10

prints instead in which operations our step spends its CPU time.
"""

import argparse
import collections
import glob
import os
import socket
import subprocess
import sys
import tempfile
import time

import turns

NETWORKS = {
    # 1.62 M parameters.
    'mnist': {
        'data.image_size': 28,
        'model.image_channels': 1,
        'model.channels': 32,
        'model.channel_multipliers': (1, 2, 2),
        'model.attention_resolutions': (7,),
        'model.norm_groups': 8,
        'model.dropout': 0.0,
        'train.batch_size': 64,
    },
    # Ho et al.'s, 35.7 M parameters.
    'cifar10': {'model.dropout': 0.0, 'train.batch_size': 16},
}
_OURS = 'ddpm'
_DISTRIBUTED = 'PyTorch, a process per core'
CONTESTANTS = (
    _OURS,
    'PyTorch, eager',
    'PyTorch, channels_last',
    'PyTorch, compiled',
    _DISTRIBUTED,
)
_SECONDS = 8.0


def make_config(network):
  from configs import default

  config = default.get_config()
  config.update_from_flattened_dict(NETWORKS[network])
  config.data.random_flip = False
  config.optimizer.warmup_steps = 0
  config.train.steps_per_loop = 1
  return config.lock()


def repeat(run_steps, batch_size):
  """Measures for some seconds.

  Args:
    run_steps: function (number of steps) that runs them.
    batch_size: images of a step.
  """
  steps, began = 0, time.monotonic()
  while (seconds := time.monotonic() - began) < _SECONDS:
    run_steps(1)
    steps += 1
  return {'images_per_second': steps * batch_size / seconds}


# Ours.


def make_trainer(config):
  """A trainer on random images."""
  import numpy as np

  from ddpm.data import catalog
  from ddpm.data import source
  from ddpm.run import build
  from ddpm.training import trainer as trainer_lib

  size, channels = config.data.image_size, config.model.image_channels
  images = np.random.default_rng(0).integers(
      0, 256, [1000, size, size, channels], np.uint8
  )
  labels = np.zeros([1000], np.int32)
  catalog.load = lambda *args, **kwargs: source.Images(images, labels, 0)
  return trainer_lib.Trainer(config, build.make_strategy(config))


def steps_of(trainer):
  """Function (number of steps) that runs them, from step 0 on."""
  done = 0

  def run_steps(number):
    nonlocal done
    done += number
    trainer.run_until(done)

  return run_steps


def train_ours(network):
  from ddpm.runtime import environment

  environment.import_tensorflow()
  config = make_config(network)
  trainer = make_trainer(config)
  run_steps = steps_of(trainer)
  run_steps(2)
  turns.serve(
      {'parameters': trainer.layout.size, 'name': trainer.devices},
      lambda: repeat(run_steps, config.train.batch_size),
  )


def profile(network):
  """Prints the CPU time of our step by operation."""
  from ddpm.runtime import environment

  environment.import_tensorflow()
  import tensorflow as tf
  from tensorflow.tsl.profiler.protobuf import xplane_pb2

  trainer = make_trainer(make_config(network))
  trainer.run_until(3)
  steps = 3
  with tempfile.TemporaryDirectory() as folder:
    with tf.profiler.experimental.Profile(folder):
      trainer.run_until(3 + steps)
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    with open(path, 'rb') as f:
      space = xplane_pb2.XSpace.FromString(f.read())
  spent = collections.Counter()
  for plane in space.planes:
    if plane.name != '/host:CPU':
      continue
    for line in plane.lines:
      for event in line.events:
        # An operation's event is called NAME:TYPE.
        _, colon, kind = plane.event_metadata[event.metadata_id].name.partition(
            ':'
        )
        if colon and kind.isidentifier():
          spent[kind] += event.duration_ps / 1e9 / steps
  total = spent.total()
  print('| operation | ms per step, of all cores | share |\n|---|---|---|')
  for kind, milliseconds in spent.most_common(25):
    print(f'| {kind} | {milliseconds:.1f} | {milliseconds / total:.1%} |')


# PyTorch's.


def torch_network(config):
  """The config's U-Net, as diffusers has it."""
  import diffusers

  model = config.model
  size = config.data.image_size
  attends = [
      size // 2**level in model.attention_resolutions
      for level in range(len(model.channel_multipliers))
  ]
  return diffusers.UNet2DModel(
      sample_size=size,
      in_channels=model.image_channels,
      out_channels=model.image_channels,
      block_out_channels=[
          model.channels * multiplier
          for multiplier in model.channel_multipliers
      ],
      layers_per_block=model.num_res_blocks,
      down_block_types=[
          'AttnDownBlock2D' if each else 'DownBlock2D' for each in attends
      ],
      up_block_types=[
          'AttnUpBlock2D' if each else 'UpBlock2D' for each in attends[::-1]
      ],
      norm_num_groups=model.norm_groups,
      norm_eps=1e-6,
      flip_sin_to_cos=False,
      freq_shift=1,
      attention_head_dim=None,
      downsample_padding=0,
  )


class TorchTrainer:
  """A plain training loop: Adam, clipping and an EMA.

  Attributes:
    params: the weights.

  Args:
    config: of the network.
    device: 'cpu' or 'cuda'.
    channels_last: whether images and weights have their channels last.
    compiled: whether to compile the network.
    dtype: of autocast; None for none.
    ranks: processes that share the batch.
  """

  def __init__(
      self,
      config,
      *,
      device='cpu',
      channels_last=False,
      compiled=False,
      dtype=None,
      ranks=1,
  ):
    import torch

    self._torch = torch
    self._device = device
    self._autocast = {
        'device_type': device, 'dtype': dtype, 'enabled': dtype is not None
    }  # fmt: skip
    self._format = (
        torch.channels_last if channels_last else torch.contiguous_format
    )
    torch.manual_seed(0)
    unet = torch_network(config).to(device, memory_format=self._format)
    self.params = list(unet.parameters())
    self._ema = [p.detach().clone() for p in self.params]
    self._adam = torch.optim.Adam(self.params, lr=2e-4, fused=True)
    self._scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    self._network = unet
    if compiled:
      self._network = torch.compile(unet)
    elif ranks > 1:
      self._network = torch.nn.parallel.DistributedDataParallel(unet)
    self._shape = (config.train.batch_size // ranks, *unet_shape(config))
    self._images = torch.randint(
        0, 256, self._shape, dtype=torch.uint8, device=device
    )
    betas = torch.linspace(1e-4, 0.02, 1000, device=device)
    self._abar = torch.cumprod(1 - betas, 0)

  def step(self):
    torch, on = self._torch, {'device': self._device}
    x0 = self._images / 127.5 - 1.0
    t = torch.randint(0, 1000, self._shape[:1], **on)
    noise = torch.randn(self._shape, **on)
    a = self._abar[t].view(-1, 1, 1, 1)
    x = a.sqrt() * x0 + (1 - a).sqrt() * noise
    x = x.contiguous(memory_format=self._format)
    with torch.autocast(**self._autocast):
      output = self._network(x, t).sample
    loss = torch.nn.functional.mse_loss(output.float(), noise)
    self._adam.zero_grad()
    self._scaler.scale(loss).backward()
    self._scaler.unscale_(self._adam)
    torch.nn.utils.clip_grad_norm_(self.params, 1.0)
    self._scaler.step(self._adam)
    self._scaler.update()
    with torch.no_grad():
      torch._foreach_lerp_(self._ema, self.params, 1e-4)


def train_torch(network, name, *, rank=0, port=None):
  import torch

  config = make_config(network)
  batch_size = config.train.batch_size
  ranks = 1
  if name == _DISTRIBUTED:
    ranks = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    if not rank:
      port = free_port()
      for other in range(1, ranks):
        subprocess.Popen(
            [sys.executable, __file__, '--worker', f'{network}:{name}',
             '--rank', f'{other}', '--port', f'{port}'],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    torch.distributed.init_process_group(
        'gloo', f'tcp://127.0.0.1:{port}', world_size=ranks, rank=rank
    )
  trainer = TorchTrainer(
      config,
      channels_last=name == 'PyTorch, channels_last',
      compiled=name == 'PyTorch, compiled',
      ranks=ranks,
  )

  def run_steps(number):
    if ranks > 1:  # Tells the others, which wait for it.
      torch.distributed.broadcast(torch.tensor(number), 0)
    for _ in range(number):
      trainer.step()

  if rank:
    number = torch.tensor(1)
    while True:
      torch.distributed.broadcast(number, 0)
      if not number:
        return
      trainer.step()
  run_steps(1)
  run_steps(1)
  turns.serve(
      {'parameters': sum(p.numel() for p in trainer.params), 'name': name},
      lambda: repeat(run_steps, batch_size),
  )
  if ranks > 1:
    run_steps(0)


def unet_shape(config):
  size = config.data.image_size
  return config.model.image_channels, size, size


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def flops_per_image(network):
  """Of a training step, as PyTorch counts its network's."""
  import torch
  from torch.utils import flop_counter

  config = make_config(network)
  unet = torch_network(config)
  with flop_counter.FlopCounterMode(display=False) as counter:
    x = torch.zeros([1, *unet_shape(config)])
    unet(x, torch.zeros([1])).sample.sum().backward()
  return counter.get_total_flops()


def peak_flops():
  """FLOP/s of a large product of matrices."""
  import torch

  n = 4096
  a = torch.randn(n, n)
  best = 0.0
  for _ in range(5):
    began = time.monotonic()
    _ = a @ a
    best = max(best, 2 * n**3 / (time.monotonic() - began))
  return best


def compare(network):
  peak, flops = peak_flops(), flops_per_image(network)
  print(
      f'{network}: {flops / 1e9:.2f} GFLOP per image; this machine reaches'
      f' {peak / 1e9:.0f} GFLOP/s\n\n'
      '| network | step | images/s | of the peak | ddpm is faster by |\n'
      '|---|---|---|---|---|',
      flush=True,
  )
  workers = [
      turns.Worker(__file__, f'{network}:{name}') for name in CONTESTANTS
  ]
  assert len({worker.ready['parameters'] for worker in workers}) == 1
  rates = [each['images_per_second'] for each in turns.measure(workers)]
  for worker, rate in zip(workers, rates, strict=True):
    print(
        f'| {network} | {worker.ready["name"]} | {rate:.1f} |'
        f' {rate * flops / peak:.0%} | {rates[0] / rate:.2f} |',
        flush=True,
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--networks', default=','.join(NETWORKS))
  parser.add_argument('--profile')
  parser.add_argument('--worker')
  parser.add_argument('--rank', type=int, default=0)
  parser.add_argument('--port')
  args = parser.parse_args()
  if args.worker:
    network, name = args.worker.split(':')
    if name == _OURS:
      train_ours(network)
    else:
      train_torch(network, name, rank=args.rank, port=args.port)
  elif args.profile:
    profile(args.profile)
  else:
    for network in args.networks.split(','):
      compare(network)


if __name__ == '__main__':
  main()
