"""The number formats that a network can be computed in: config.precision.

Weights, sums, normalization and softmax are float32 in all of them. They differ
in what convolutions and matrix products round their inputs to.
"""

import contextlib
import typing

import tensorflow as tf


class Precision(typing.NamedTuple):
  """A number format.

  Attributes:
    dtype: Keras' dtype policy.
    tensor_float_32: whether products of float32 may round to fewer bits: to
      TF32 (10 of the 23 bits of the mantissa) on GPUs that have it, to bfloat16
      (7 bits) on TPUs. A CPU never rounds.
  """

  dtype: str
  tensor_float_32: bool


PRECISIONS = {
    'float32': Precision('float32', False),
    'tf32': Precision('float32', True),
    'mixed_bfloat16': Precision('mixed_bfloat16', True),
    'mixed_float16': Precision('mixed_float16', True),
}


def use(name):
  """Sets TensorFlow's part of a precision, for the whole process.

  Args:
    name: in PRECISIONS.

  Returns:
    The Keras dtype policy, by name, that makes the rest.
  """
  precision = PRECISIONS[name]
  tf.config.experimental.enable_tensor_float_32_execution(
      precision.tensor_float_32
  )
  return precision.dtype


@contextlib.contextmanager
def exact_products():
  """Products of float32 are float32 in its context, also on accelerators."""
  before = tf.config.experimental.tensor_float_32_execution_enabled()
  tf.config.experimental.enable_tensor_float_32_execution(False)
  try:
    yield
  finally:
    tf.config.experimental.enable_tensor_float_32_execution(before)
