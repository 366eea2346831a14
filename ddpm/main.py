"""Trains a diffusion model.

  python -m ddpm.main --config=configs/mnist5k.py --workdir=runs/mnist5k

Rerun to resume.
"""

import os

from absl import flags
from etils import epy
from ml_collections import config_flags

from ddpm.runtime import profile
from ddpm.runtime import program
from ddpm.runtime import targets
from ddpm.runtime import topology as topology_lib
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  import tensorflow as tf

  from ddpm.run import advice
  from ddpm.run import build
  from ddpm.run import config as config_lib
  from ddpm.runtime import files
  from ddpm.runtime import preemption
  from ddpm.training import aot
  from ddpm.training import cost as cost_lib
  from ddpm.training import plan
  from ddpm.training import trainer as trainer_lib

FLAGS = flags.FLAGS


def define_flags():
  config_flags.DEFINE_config_file(
      'config', None, 'A file such as configs/mnist5k.py.', lock_config=True
  )
  flags.DEFINE_string(
      'workdir', None, 'Folder for checkpoints and logs, shared by all workers.'
  )
  flags.DEFINE_bool(
      'dry_run', False, 'Run a few steps, print the plan, write nothing.'
  )
  flags.DEFINE_string(
      'topology',
      None,
      'With --dry_run: predict a step on 8xh100, 32x8xa100 or v5e-256 instead.',
  )
  flags.DEFINE_string(
      'compile_for',
      None,
      'With --dry_run: compile the step for h100, a100 (8 of them), h100:1 or'
      ' v5e:2x2 instead, on this machine.',
  )
  flags.DEFINE_string(
      'profile', None, 'Profile steps 100,110, say, for TensorBoard.'
  )


def check_flags():
  """Raises UserError if a flag is missing, or names no config."""
  if not FLAGS['config'].present:
    raise UserError('--config is missing: pass one such as configs/mnist5k.py')
  if not (FLAGS.dry_run or FLAGS.workdir):
    raise UserError('--workdir is missing: pass a folder for the run')
  program.check_config_found(FLAGS.config)
  if FLAGS.topology is not None:
    if not FLAGS.dry_run:
      raise UserError('--topology is a prediction: pass --dry_run with it')
    _parse(topology_lib, FLAGS.topology)
  if FLAGS.compile_for is not None:
    if not FLAGS.dry_run or FLAGS.topology is not None:
      raise UserError(
          '--compile_for trains nothing: pass --dry_run with it, and no'
          ' --topology'
      )
    _parse(targets, FLAGS.compile_for)
  if FLAGS.profile is not None:
    if FLAGS.dry_run:
      raise UserError('--profile is of training: leave out --dry_run')
    _, last = _parse(profile, FLAGS.profile)
    if last > (num_steps := FLAGS.config.train.num_steps):
      raise UserError(
          f'--profile ends at step {last}, but training at step {num_steps}'
          ' (train.num_steps)'
      )


def main():
  stop = preemption.StopSignal()
  config = FLAGS.config
  config_lib.validate(config)
  if FLAGS.dry_run:
    for sentence in advice.advice(config):
      print(f'warning: {sentence}')
  if FLAGS.topology is not None:
    _predict(config, _parse(topology_lib, FLAGS.topology))
    return
  if FLAGS.compile_for is not None:
    _compile(config, _parse(targets, FLAGS.compile_for))
    return
  strategy = build.make_strategy(config)
  if FLAGS.dry_run:
    for line in plan.lines(config, strategy):
      print(line, flush=True)
    return
  files.make_writable_folder(FLAGS.workdir, name='--workdir')
  _check_no_samples(FLAGS.workdir)
  steps = FLAGS.profile and profile.parse(FLAGS.profile)
  trainer_lib.train(config, FLAGS.workdir, strategy, stop, steps)


def _check_no_samples(workdir):
  """Raises UserError for an output of ddpm.sample, which has a grid, too."""
  has_run, has_samples = (
      tf.io.gfile.exists(os.path.join(workdir, name))
      for name in ('config.json', 'manifest.json')
  )
  if has_samples and not has_run:
    raise UserError(
        f'--workdir {workdir} holds images of ddpm.sample: use another folder'
    )


def _parse(module, value):
  try:
    return module.parse(value)
  except ValueError as e:
    raise UserError(f'--{e}') from e


def _predict(config, topology):
  size = trainer_lib.replica_batch_size(config, topology.devices)
  cost = _count(config, size)
  print(f'parameters: {cost.parameters}')
  print(f'replicas: {topology.devices}')
  print(f'per-replica batch: {size}')
  print(f'per-replica step: {cost.flops / 1e9:.1f} GFLOP')
  _print_prediction(
      config,
      topology,
      flops=cost.flops,
      update_bytes=cost.update_bytes,
      reduced_bytes=cost.reduced_bytes,
  )
  print(
      f'memory: {cost.peak_bytes / 2**30:.2f} GiB peak of'
      f' {topology.device.memory / 2**30:.1f} GiB per device'
  )


def _count(config, size):
  """The cost of a step of `size` images on an accelerator."""
  return cost_lib.of_step(
      config, size, jit_compile=config.jit_compile is not False
  )


def _print_prediction(config, topology, **counted):
  step = topology_lib.predict(topology, precision=config.precision, **counted)
  print(
      f'step: {step.seconds * 1e3:.3f} ms = gradient {step.gradient * 1e3:.3f}'
      f' + all-reduce {step.all_reduce * 1e3:.3f}'
      f' ({step.network_bytes / 1e6:.1f} MB each way)'
      f' + update {step.update * 1e3:.3f}'
  )
  print(f'images/s: {config.train.batch_size / step.seconds:.0f}')
  print(f'efficiency: {step.efficiency:.3f}')


def _compile(config, target):
  print(f'compiling for {FLAGS.compile_for}, which takes minutes', flush=True)
  try:
    step = aot.compile_step(config, target)
  except aot.TooLarge as e:
    print(f'train.batch_size={config.train.batch_size} does not fit: {e}')
    largest = aot.largest_batch_size(config, target)
    best = f'use {largest}, the largest that fits (to 1 in 16),'
    raise UserError(
        f'config.train.batch_size is {config.train.batch_size}, which does not'
        f' fit into the memory of {FLAGS.compile_for}:'
        f' {best if largest else "none does;"} or set train.remat or a larger'
        ' train.accumulation_steps'
    ) from e
  print(f'devices: {step.devices} x {step.kind}')
  size = config.train.batch_size // step.devices
  print(f'per-replica batch: {size}')
  print(
      f'memory: {step.peak / 2**30:.2f} GiB peak per device,'
      f' {step.temporary / 2**30:.2f} GiB of it temporary'
  )
  cost = _count(config, size)
  flops = step.flops or cost.flops
  by = '' if step.flops else ', by the graph'
  print(f'per-replica step: {flops / 1e9:.1f} GFLOP{by}')
  if step.bytes_accessed:
    print(f'memory read and written: {step.bytes_accessed / 1e9:.2f} GB')
  else:
    print('memory read and written: not counted by this compiler')
  sizes = ', '.join(f'{size / 1e6:.1f} MB' for size in step.all_reduces)
  print(f'all-reduces: {len(step.all_reduces)}' + f' ({sizes})' * bool(sizes))
  print(f'not updated in place: {", ".join(step.not_aliased) or "nothing"}')
  print(f'on the host: {", ".join(step.host_ops) or "nothing"}')
  print(f'compiled in {step.seconds:.0f} s')
  if device := topology_lib.DEVICES.get(target.name):
    _print_prediction(
        config,
        topology_lib.Topology(1, step.devices, device),
        flops=flops,
        accessed_bytes=step.bytes_accessed or 0,
        update_bytes=cost.update_bytes,
        reduced_bytes=sum(step.all_reduces),
    )


if __name__ == '__main__':
  program.start(main, define_flags, check_flags)
