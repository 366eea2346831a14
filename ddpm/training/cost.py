"""What a training step costs, counted in its graph."""

import collections
import dataclasses
import math
import typing

import tensorflow as tf

from ddpm.training import step as step_lib

# Operations whose output is their input's memory.
_VIEWS = {'Reshape', 'Identity', 'ExpandDims', 'Squeeze'}


class Cost(typing.NamedTuple):
  """Of one replica's step.

  Attributes:
    parameters: of the network.
    emas: EMAs of them.
    flops: additions and multiplications of all convolutions and products of
      matrices, forward and backward.
    gradient_bytes: memory that the gradient of a microbatch needs, without XLA,
      which needs less.
    reduced_bytes: length of what is all-reduced.
    in_place: whether the update writes over the state, as XLA does.
  """

  parameters: int
  emas: int
  flops: int
  gradient_bytes: int
  reduced_bytes: int
  in_place: bool

  @property
  def state_bytes(self):
    """Weights, Adam's two moments and the EMAs, in float32."""
    return 4 * (3 + self.emas) * self.parameters

  @property
  def peak_bytes(self):
    """Peak memory of a step: that of the gradient, or that of the update.

    The update has the gradient before and after it is clipped, and may make a
    new state before it drops the old one.
    """
    update = 2 * 4 * self.parameters
    if not self.in_place:
      update += self.state_bytes
    return self.state_bytes + max(self.gradient_bytes, update)

  @property
  def update_bytes(self):
    """Memory read and written by the update: the state, and the gradient."""
    return 2 * self.state_bytes + 4 * self.parameters


def of_step(config, replica_batch_size, *, jit_compile):
  """Counts the step of a config.

  Args:
    config: a valid config.
    replica_batch_size: images of a replica, which train.accumulation_steps
      divides.
    jit_compile: whether XLA compiles it.

  Returns:
    `Cost`.
  """
  train_step, specs = step_lib.without_weights(config)
  microbatches = train_step.accumulation_steps
  gradient = step_lib.compile_gradient(
      dataclasses.replace(train_step, accumulation_steps=1), specs,
      replica_batch_size=replica_batch_size // microbatches, jit_compile=False,
  )  # fmt: skip
  gradient_bytes = _peak_bytes(gradient.graph)
  if microbatches > 1:  # The sum so far.
    gradient_bytes += 4 * train_step.packed_size()
  return Cost(
      parameters=train_step.layout.size,
      emas=len(train_step.emas.names),
      flops=microbatches * sum(map(_flops, _needed(gradient.graph))),
      gradient_bytes=gradient_bytes,
      reduced_bytes=train_step.reduced_bytes(),
      in_place=jit_compile,
  )


def of_training_on_an_image(model):
  """FLOPs that training has to compute per image: three forward passes.

  The backward pass is counted as two. Blocks that are computed again (remat)
  are not: this is what a model FLOPs utilization (MFU) is of (Chowdhery et al.
  2022, "PaLM", appendix B).

  Args:
    model: `unet.UNet`.
  """
  labels = tf.TensorSpec([1], tf.int32) if model.num_classes else None

  @tf.function(autograph=False)
  def forward(images, times, labels):
    return model(images, times, labels=labels)

  graph = forward.get_concrete_function(
      tf.TensorSpec([1, *model.image_shape]), tf.TensorSpec([1]), labels
  ).graph
  return 3 * sum(map(_flops, _needed(graph)))


def _needed(graph):
  """The operations, in order, that a function's outputs depend on.

  Gradients that nobody asked for are in the graph, but never computed.
  """
  needed = {tensor.op for tensor in graph.outputs}
  for operation in reversed(graph.get_operations()):
    if operation in needed:
      needed |= {tensor.op for tensor in operation.inputs}
  return [each for each in graph.get_operations() if each in needed]


def _flops(operation):
  """Two for each product of two numbers: one to multiply, one to add."""
  kind, output = operation.type, operation.outputs
  if kind == 'Conv2D':
    return 2 * _size(output[0]) * math.prod(operation.inputs[1].shape[:3])
  if kind == 'Conv2DBackpropInput':
    _, kernel, upstream = operation.inputs
    return 2 * _size(upstream) * math.prod(kernel.shape[:3])
  if kind == 'Conv2DBackpropFilter':
    upstream = operation.inputs[2]
    return 2 * _size(upstream) * math.prod(output[0].shape[:3])
  if kind == 'MatMul':
    rows = 0 if operation.get_attr('transpose_a') else 1
    return 2 * _size(output[0]) * operation.inputs[0].shape[rows]
  if kind == 'Einsum':
    equation = operation.get_attr('equation').decode()
    sizes = {}
    for axes, operand in zip(
        equation.partition('->')[0].split(','), operation.inputs, strict=True
    ):
      sizes |= zip(axes, operand.shape, strict=True)
    return 2 * math.prod(sizes.values())
  return 0


def _peak_bytes(graph):
  """The most memory that a function's results need at once.

  As if its operations ran in order, one by one, and each result were freed
  after its last use. The function's inputs do not count.
  """
  operations = _needed(graph)
  last_use = {_memory(tensor): len(operations) for tensor in graph.outputs}
  for i, operation in reversed(list(enumerate(operations))):
    for tensor in (*operation.inputs, *operation.outputs):
      last_use.setdefault(_memory(tensor), i)
  freed = collections.Counter()  # Bytes, by the operation that uses them last.
  now = peak = 0
  for i, operation in enumerate(operations):
    if operation.type not in (*_VIEWS, 'Const', 'Placeholder'):
      for tensor in operation.outputs:
        if tensor.shape.is_fully_defined():  # Not so are only tiny ones.
          size = _size(tensor) * tensor.dtype.size
          freed[last_use[_memory(tensor)]] += size
          now += size
    peak = max(peak, now)
    now -= freed[i]
  return peak


def _memory(tensor):
  """What tensors that share their memory have in common."""
  while tensor.op.type in _VIEWS:
    tensor = tensor.op.inputs[0]
  return tensor.ref()


def _size(tensor):
  return math.prod(tensor.shape)
