"""Compiles a step for accelerators that are not there: `--compile_for`.

TensorFlow turns the gradient and the update into StableHLO, JAX puts the
all-reduce between them, and the accelerator's own compiler, libtpu or XLA:GPU,
compiles the whole step of all replicas. Needs the extra `aot`, which pins
versions: compiling without a device uses private functions of JAX.
"""

import functools
import importlib
import logging as std_logging
import math
import os
import pathlib
import re
import time
import typing

from absl import logging
import numpy as np
import tensorflow as tf

from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError
from ddpm.training import step as step_lib
from ddpm.training import trainer


class Report(typing.NamedTuple):
  """What a compiler says of a step.

  Attributes:
    devices: number of replicas.
    kind: of device, as the compiler calls it.
    peak: bytes of memory of a device, at once.
    temporary: bytes of it besides the state and the batch.
    flops, bytes_accessed: per device; None where the compiler does not count.
    all_reduces: bytes of each.
    not_aliased: names of the parts of the state that are not updated in place.
    host_ops: names of what would run on the host, or wait for it.
    seconds: that compiling took.
  """

  devices: int
  kind: str
  peak: int
  temporary: int
  flops: float | None
  bytes_accessed: float | None
  all_reduces: list
  not_aliased: list
  host_ops: list
  seconds: float


class TooLarge(Exception):
  """The step does not fit into the device's memory."""


def compile_step(config, target):
  """Compiles the whole step of a config.

  Args:
    config: a valid config.
    target: `targets.Target`.

  Returns:
    `Report`.

  Raises:
    TooLarge: it does not fit into the device's memory.
    UserError: the extra `aot` is missing, the layout does not exist, the batch
      is not divisible, or the compiler fails.
  """
  devices = _devices(target)
  lowered, names = lower(config, devices, target.platform)
  began = time.monotonic()
  try:
    compiled = lowered.compile()
  except Exception as e:
    if 'RESOURCE_EXHAUSTED' in str(e) or 'Hbm' in str(e):
      raise TooLarge(reason(e)) from e
    raise UserError(
        f'the compiler of {target.name} failed: {reason(e)[:400]}'
    ) from e
  seconds = time.monotonic() - began
  report = _report(compiled, names, devices, seconds)
  # The compiler of GPUs does not refuse by itself.
  if target.platform == 'cuda' and report.peak > (limit := target.memory):
    raise TooLarge(
        f'{report.peak / 2**30:.1f} GiB, of {limit / 2**30:.1f} GiB'
    )
  return report


def lower(config, devices, platform):
  """The step of all replicas for JAX's compiler, with the state donated.

  Args:
    config: a valid config.
    devices: JAX devices, one per replica.
    platform: 'cuda' or 'tpu'.

  Returns:
    `jax.stages.Lowered`, and the names of the state's parts, in its order.
  """
  import jax

  step, arguments = _jax_step(config, len(devices), platform)
  mesh = jax.sharding.Mesh(np.array(devices), ('replica',))
  whole, split = jax.P(), jax.P('replica')
  specs = (whole, whole, split)

  def sharding(spec, tree):
    return jax.tree.map(lambda _: jax.NamedSharding(mesh, spec), tree)

  lowered = jax.jit(
      jax.shard_map(
          step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False
      ),
      donate_argnums=0,
      in_shardings=tuple(map(sharding, specs, arguments)),
      keep_unused=True,
  ).lower(*arguments)
  paths, _ = jax.tree.flatten_with_path(arguments[0])
  keystr = functools.partial(
      jax.tree_util.keystr, simple=True, separator='/'
  )
  return lowered, [keystr(path) for path, _ in paths]


def _jax_step(config, replicas, platform):
  """The step as a function of JAX, for `jax.shard_map` over 'replica'.

  Args:
    config: a valid config.
    replicas: number of them, which divides the batch size.
    platform: JAX's name of what it will be compiled for.

  Returns:
    Function (state, stop, batch) -> (state, metrics), and the arguments'
    shapes: the batch is the global one.
  """
  import jax
  from jax.experimental import jax2tf

  call_tf = importlib.import_module('jax.experimental.jax2tf.call_tf')
  # The step has int64 counters.
  jax.config.update('jax_enable_x64', True)
  # TensorFlow without CUDA or TPU gives the same StableHLO for its CPU.
  jax.interpreters.mlir.register_lowering(
      call_tf.call_tf_p,
      functools.partial(call_tf._call_tf_lowering, platform='cpu'),
      platform=platform,
  )
  train_step, specs = step_lib.without_weights(config)
  b = trainer.replica_batch_size(config, replicas)
  gradient = step_lib.compile_gradient(
      train_step, specs, replica_batch_size=b, jit_compile=True
  )
  packed = tf.TensorSpec([train_step.packed_size()], tf.float32)
  update = tf.function(
      train_step.update, jit_compile=True, autograph=False
  ).get_concrete_function(specs, packed)

  def all_reduce(packed):  # As `TrainStep.all_reduce`.
    size, dtype = train_step.layout.size, train_step.all_reduce_dtype
    if dtype == 'float32':
      return jax.lax.psum(packed, 'replica')
    gradient = jax.lax.psum(packed[:size].astype(dtype), 'replica')
    rest = jax.lax.psum(packed[size:], 'replica')
    return jax.numpy.concatenate([gradient.astype('float32'), rest])

  def step(state, stop, batch):
    inputs = {name: state[name] for name in step_lib.INPUTS}
    packed = jax2tf.call_tf(lambda *a: gradient(*a))(inputs, stop, batch)
    packed = all_reduce(packed)
    return jax2tf.call_tf(lambda *a: update(*a))(state, packed)

  def shape(x):
    return jax.ShapeDtypeStruct(tuple(x.shape), x.dtype.as_numpy_dtype)

  n, image_shape = config.train.batch_size, train_step.model.image_shape
  batch = {
      'image': jax.ShapeDtypeStruct((n, *image_shape), np.uint8),
      'label': jax.ShapeDtypeStruct((n,), np.int32),
      'position': jax.ShapeDtypeStruct((n,), np.int64),
  }
  stop = jax.ShapeDtypeStruct((), np.float32)
  return step, (jax.tree.map(shape, specs), stop, batch)


def largest_batch_size(config, target):
  """The largest batch size that fits, to 1 in 16, found by bisection.

  Args:
    config: a valid config, whose own batch size does not fit.
    target: `targets.Target`.

  Returns:
    Integer, 0 if none does.
  """
  unit = len(_devices(target)) * config.train.accumulation_steps
  fits, too_large = 0, config.train.batch_size // unit
  while too_large - fits > max(1, fits // 16):
    middle = (fits + too_large) // 2
    logging.info('compiling for batch size %d', middle * unit)
    smaller = config.copy_and_resolve_references()
    with smaller.unlocked():
      smaller.train.batch_size = middle * unit
    try:
      compile_step(smaller, target)
      fits = middle
    except TooLarge:
      too_large = middle
  return fits * unit


@functools.cache
def _devices(target):
  """JAX's devices of a target, which only compile."""
  # libtpu would ask the metadata of a TPU VM for what it is. The type silences
  # it; the layout decides.
  os.environ.update(
      JAX_PLATFORMS='cpu',
      TPU_SKIP_MDS_QUERY='1',
      TPU_WORKER_HOSTNAMES='localhost',
      TPU_ACCELERATOR_TYPE='v5litepod-4',
      ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  try:
    import jax
  except ImportError as e:
    raise UserError(
        '--compile_for needs the compilers of accelerators: pip install -e'
        " '.[aot]'"
    ) from e
  # Something may have imported it before.
  jax.config.update('jax_platforms', 'cpu')
  # It looks for libraries that only running needs, and says so at length.
  std_logging.getLogger('jax._src.xla_bridge').setLevel(std_logging.CRITICAL)
  try:
    return _tpus(target) if target.platform == 'tpu' else _gpus(target)
  except Exception as e:
    raise UserError(
        f'--compile_for: no compiler for {target.name}:{target.layout} here'
        f" ({reason(e)}): check the layout, and that pip install -e '.[aot]'"
        ' succeeded'
    ) from e


def _tpus(target):
  from jax.experimental import topologies

  name = f'{target.name}:{target.layout}'
  return topologies.get_topology_desc(
      platform='tpu', topology_name=name
  ).devices


def _gpus(target):
  # There is no device on which to try which kernel is fastest.
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_autotune_level=0'
  from jax._src.lib import xla_client
  import jax_plugins.xla_cuda12 as plugin

  library = pathlib.Path(plugin.__file__).with_name('xla_cuda_plugin.so')
  compiler = xla_client.load_pjrt_plugin_dynamically('cuda', str(library))
  xla_client.initialize_pjrt_plugin('cuda')
  topology = xla_client.make_c_api_device_topology(
      compiler,
      '',
      target_config=target.description,
      topology=f'1x1x{target.layout}',
  )
  return topology._make_compile_only_devices()


def _report(compiled, names, devices, seconds):
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  cost = compiled.cost_analysis() or {}
  return Report(
      devices=len(devices),
      kind=devices[0].device_kind,
      peak=memory.peak_memory_in_bytes,
      temporary=memory.temp_size_in_bytes,
      flops=cost.get('flops'),
      bytes_accessed=cost.get('bytes accessed'),
      all_reduces=_all_reduces(text),
      not_aliased=_not_aliased(text, names),
      host_ops=_host_ops(text),
      seconds=seconds,
  )


# Bytes of an element.
_SIZES = {'bf16': 2, 'f16': 2, 'f32': 4, 's32': 4, 's64': 8}


def _all_reduces(text):
  """Bytes of each all-reduce of a compiled program."""
  return [
      sum(
          _SIZES[dtype] * math.prod(map(int, filter(None, shape.split(','))))
          for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
      )
      for shapes in re.findall(r' = (\S.*?) all-reduce(?:-start)?\(', text)
  ]


def _not_aliased(text, names):
  """The parts of the state that the results are not written over."""
  header = text.partition('\n')[0]
  aliased = {int(i) for i in re.findall(r'\{\d*\}: \((\d+), ', header)}
  return [name for i, name in enumerate(names) if i not in aliased]


def _host_ops(text):
  """What of a compiled program would run on the host, or wait for it."""
  calls = set(re.findall(r'custom_call_target="([^"]+)"', text))
  return sorted(
      {call for call in calls if re.search('callback|host', call.lower())}
      | set(re.findall(r' (infeed|outfeed|send|recv)\(', text))
  )
