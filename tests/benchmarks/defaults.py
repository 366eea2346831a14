"""Are this machine's default devices, threads and compiler the fastest?

  python tests/benchmarks/defaults.py

Trains two small networks with every choice that a CPU allows, in turn, and
prints a Markdown table of images/s (medians) and of the CPU time spent in the
kernel. The first row is what ddpm chooses by itself. Some five minutes; nothing
else should run meanwhile.

  python tests/benchmarks/defaults.py --devices=1,2,4,8,16

prints what each number of virtual devices costs instead, at the same batch
size: CPU seconds per step, peak memory, and images/s.
"""

import argparse
import ast
import resource
import time

import turns

NETWORKS = {
    'mnist5k': {},
    # A U-Net at the images' own resolution.
    '1.62 M': {
        'model.patch_size': 1,
        'model.channel_multipliers': (1, 2, 2),
        'model.num_res_blocks': 2,
    },
}
_ONE = {'distribute.strategy': 'one_device'}
_XLA, _NO_XLA = {'jit_compile': True}, {'jit_compile': False}
_ONE_DNN, _NO_ONE_DNN = (
    {'TF_ENABLE_ONEDNN_OPTS': '1'}, {'TF_ENABLE_ONEDNN_OPTS': '0'}
)  # fmt: skip
# Name: changes of the config and of the environment.
SETTINGS = {
    'the default': ({}, {}),
    'oneDNN, one device on all cores': (_ONE | _NO_XLA, _ONE_DNN),
    "TensorFlow's kernels, one device on all cores": (
        _ONE | _NO_XLA, _NO_ONE_DNN,
    ),
    "TensorFlow's kernels, one device per core": (_NO_XLA, _NO_ONE_DNN),
    'XLA, one device on all cores': (_ONE | _XLA, _NO_ONE_DNN),
    'XLA, two devices': (
        _XLA | {'distribute.virtual_devices': 2}, _NO_ONE_DNN,
    ),
}  # fmt: skip
_SECONDS = 4.0


def work(overrides):
  """Trains for some seconds at a time, with some settings changed."""
  from ddpm.runtime import environment

  environment.import_tensorflow()
  from configs import mnist5k
  from ddpm.run import build
  from ddpm.training import trainer as trainer_lib

  config = mnist5k.get_config()
  config.update_from_flattened_dict(overrides)
  trainer = trainer_lib.Trainer(config.lock(), build.make_strategy(config))
  step, _, _ = trainer.run_until(5)

  def train():
    nonlocal step
    first, began, before = step, time.monotonic(), _usage()
    while time.monotonic() - began < _SECONDS:
      step, _, _ = trainer.run_until(step + 1)
    seconds, after = time.monotonic() - began, _usage()
    user, kernel, faults = (b - a for a, b in zip(before, after, strict=True))
    return {
        'images_per_second': (step - first) * config.train.batch_size / seconds,
        'cpu_seconds': (user + kernel) / (step - first),
        'kernel': kernel / (user + kernel),
        'faults_per_second': faults / seconds,
        'gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }

  turns.serve(trainer.devices, train)


def _usage():
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime, usage.ru_stime, usage.ru_minflt


def compare_settings():
  print(
      '| network | setting | devices | images/s | in the kernel | page faults/s'
      ' |\n|---|---|---|---|---|---|'
  )
  for network, overrides in NETWORKS.items():
    workers = [
        turns.Worker(__file__, repr(overrides | config), **env)
        for config, env in SETTINGS.values()
    ]
    for setting, worker, result in zip(
        SETTINGS, workers, turns.measure(workers), strict=True
    ):
      print(
          f'| {network} | {setting} | {worker.ready} |'
          f' {result["images_per_second"]:.1f} | {result["kernel"]:.0%} |'
          f' {result["faults_per_second"]:,.0f} |',
          flush=True,
      )


def compare_devices(numbers, batch_size):
  print(
      '| network | virtual devices | CPU seconds per step | images/s | peak'
      ' memory |\n|---|---|---|---|---|'
  )
  for network, overrides in NETWORKS.items():
    workers = [
        turns.Worker(
            __file__,
            repr(overrides | {
                'train.batch_size': batch_size,
                'distribute.virtual_devices': number,
            }),
        )
        for number in numbers
    ]  # fmt: skip
    for number, result in zip(numbers, turns.measure(workers), strict=True):
      print(
          f'| {network} | {number} | {result["cpu_seconds"]:.4f} |'
          f' {result["images_per_second"]:.1f} | {result["gib"]:.2f} GiB |',
          flush=True,
      )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--devices')
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--worker')
  args = parser.parse_args()
  if args.worker:
    work(ast.literal_eval(args.worker))
  elif args.devices:
    numbers = [int(n) for n in args.devices.split(',')]
    compare_devices(numbers, args.batch_size)
  else:
    compare_settings()


if __name__ == '__main__':
  main()
