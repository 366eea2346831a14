"""What a training step costs, counted in its graph."""

import dataclasses
import math
import typing

import tensorflow as tf

from ddpm.nn import flat
from ddpm.run import build
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
    activation_bytes: what the forward pass of a microbatch keeps for the
      backward pass, without XLA, which keeps less.
    reduced_bytes: length of what is all-reduced.
  """

  parameters: int
  emas: int
  flops: int
  activation_bytes: int
  reduced_bytes: int

  @property
  def state_bytes(self):
    """Weights, Adam's two moments and the EMAs, in float32."""
    return 4 * (3 + self.emas) * self.parameters

  @property
  def peak_bytes(self):
    """Peak memory of a step: that of the gradient, or that of the update.

    The gradient is there in parts and as one vector; the update has the summed
    gradient, and makes a new state before it drops the old one.
    """
    gradient = self.activation_bytes + 2 * 4 * self.parameters
    update = self.state_bytes + 2 * 4 * self.parameters
    return self.state_bytes + max(gradient, update)

  @property
  def update_bytes(self):
    """Memory read and written by the update: the state, and the gradient."""
    return 2 * self.state_bytes + 4 * self.parameters


def of_step(config, replica_batch_size):
  """Counts the step of a config.

  Args:
    config: a valid config.
    replica_batch_size: images of a replica, which train.accumulation_steps
      divides.

  Returns:
    `Cost`.
  """
  model = build.make_model(config)
  params = flat.flatten(model.trainable_variables)
  train_step = step_lib.TrainStep.from_config(config, model, flat.Layout(model))
  microbatches = train_step.accumulation_steps
  microbatch = replica_batch_size // microbatches
  with tf.device('CPU:0'):
    state = train_step.initial_state(params)
    gradient = step_lib.compile_gradient(
        dataclasses.replace(train_step, accumulation_steps=1), state,
        replica_batch_size=microbatch, jit_compile=False,
    )  # fmt: skip
  operations = _needed(gradient.graph)
  return Cost(
      parameters=params.shape[0],
      emas=len(train_step.emas.names),
      flops=microbatches * sum(map(_flops, operations)),
      activation_bytes=_kept_bytes(operations),
      reduced_bytes=train_step.reduced_bytes(),
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


def _kept_bytes(operations):
  """Memory of what was computed before the gradient and is used by it."""
  first = next(
      i
      for i, operation in enumerate(operations)
      if operation.name.startswith('gradient_tape')
  )
  forward = set(operations[:first])
  kept = {}
  for operation in operations[first:]:
    for tensor in operation.inputs:
      if tensor.op in forward:
        while tensor.op.type in _VIEWS:
          tensor = tensor.op.inputs[0]
        if tensor.op.type not in ('Const', 'Placeholder'):
          kept[tensor.ref()] = _size(tensor) * tensor.dtype.size
  return sum(kept.values())


def _size(tensor):
  return math.prod(tensor.shape)
