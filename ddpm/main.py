"""Trains a diffusion model.

  python -m ddpm.main --config=configs/mnist5k.py --workdir=runs/mnist5k

Rerun to resume.
"""

import resource

from absl import flags
from etils import epy
from ml_collections import config_flags

from ddpm.runtime import program
from ddpm.runtime import targets
from ddpm.runtime import topology as topology_lib
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  import tensorflow as tf

  from ddpm.run import build
  from ddpm.run import config as config_lib
  from ddpm.runtime import files
  from ddpm.runtime import preemption
  from ddpm.training import aot
  from ddpm.training import cost as cost_lib
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
      'dry_run', False, 'Run one step, print sizes and memory, write nothing.'
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


def check_flags():
  """Raises UserError if a flag is missing, or names no config."""
  if FLAGS.config is None:
    raise UserError('--config is missing: pass one such as configs/mnist5k.py')
  if not (FLAGS.dry_run or FLAGS.workdir):
    raise UserError('--workdir is missing: pass a folder for the run')
  if set(FLAGS.workdir or '') & set('*?[\\'):
    raise UserError(
        f'--workdir is {FLAGS.workdir}, but TensorFlow reads *, ?, [ and \\ in'
        ' the names of checkpoints as patterns: use another name'
    )
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


def main():
  stop = preemption.StopSignal()
  config = FLAGS.config
  config_lib.validate(config)
  if FLAGS.topology is not None:
    _predict(config, _parse(topology_lib, FLAGS.topology))
    return
  if FLAGS.compile_for is not None:
    _compile(config, _parse(targets, FLAGS.compile_for))
    return
  strategy = build.make_strategy(config)
  if FLAGS.dry_run:
    _dry_run(config, strategy)
    return
  files.make_writable_folder(FLAGS.workdir, name='--workdir')
  trainer_lib.train(config, FLAGS.workdir, strategy, stop)


def _dry_run(config, strategy):
  trainer = trainer_lib.Trainer(config, strategy)
  _, _, metrics = trainer.run_until(1)
  print(f'parameters: {trainer.layout.size}')
  print(f'devices: {", ".join(strategy.extended.worker_devices)}')
  print(f'replicas: {strategy.num_replicas_in_sync}')
  print(f'per-replica batch: {trainer.replica_batch_size}')
  print(f'first loss: {metrics["loss"]:.6f}')
  gpus = tf.config.list_logical_devices('GPU')
  for gpu in gpus:
    peak = tf.config.experimental.get_memory_info(gpu.name)['peak']
    print(f'memory: {peak / 2**30:.2f} GiB peak on {gpu.name}')
  if not gpus:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f'memory: {peak / 2**30:.2f} GiB peak resident set')


def _parse(module, value):
  try:
    return module.parse(value)
  except ValueError as e:
    raise UserError(f'--{e}') from e


def _predict(config, topology):
  size = trainer_lib.replica_batch_size(config, topology.devices)
  cost = cost_lib.of_step(config, size)
  step = topology_lib.predict(
      topology,
      flops=cost.flops,
      update_bytes=cost.update_bytes,
      reduced_bytes=cost.reduced_bytes,
      precision=config.precision,
  )
  print(f'parameters: {cost.parameters}')
  print(f'replicas: {topology.devices}')
  print(f'per-replica batch: {size}')
  print(f'per-replica step: {cost.flops / 1e9:.1f} GFLOP')
  print(
      f'step: {step.seconds * 1e3:.3f} ms = gradient {step.gradient * 1e3:.3f}'
      f' + all-reduce {step.all_reduce * 1e3:.3f}'
      f' ({step.network_bytes / 1e6:.1f} MB each way)'
      f' + update {step.update * 1e3:.3f}'
  )
  print(f'images/s: {config.train.batch_size / step.seconds:.0f}')
  print(f'efficiency: {step.efficiency:.3f}')
  print(
      f'memory: {cost.peak_bytes / 2**30:.2f} GiB peak of'
      f' {topology.device.memory / 2**30:.1f} GiB per device'
  )


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
  if step.flops is None:
    flops = cost_lib.of_step(config, size).flops
    print(f'per-replica step: {flops / 1e9:.1f} GFLOP, by the graph')
    print('memory read and written: not counted by this compiler')
  else:
    print(f'per-replica step: {step.flops / 1e9:.1f} GFLOP')
    print(f'memory read and written: {step.bytes_accessed / 1e9:.2f} GB')
  sizes = ', '.join(f'{size / 1e6:.1f} MB' for size in step.all_reduces)
  print(f'all-reduces: {len(step.all_reduces)}' + f' ({sizes})' * bool(sizes))
  print(f'not updated in place: {", ".join(step.not_aliased) or "nothing"}')
  print(f'on the host: {", ".join(step.host_ops) or "nothing"}')
  print(f'compiled in {step.seconds:.0f} s')


if __name__ == '__main__':
  program.start(main, define_flags, check_flags)
