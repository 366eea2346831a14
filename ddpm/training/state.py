"""The state of a run, as a few flat variables.

The network's weights are one vector [P]. An all-reduce is therefore one
message, and Adam, clipping, EMAs and checkpoints are a few ops, whatever the
number of layers. The network itself (`UNet`) only provides code and shapes.
"""

import tensorflow as tf


class State:
  """The variables of a run. Create it in the strategy's scope.

  Every replica holds a copy and makes the same update to it, from the same
  all-reduced gradient. To TensorFlow each is a variable synchronised on read,
  of which the first copy counts: replicas need no merge to write it, it is
  saved once, and restored to every replica of any strategy. None is int32:
  TensorFlow would keep it in the host's memory, and a GPU wait for it.

  Attributes:
    step: int64 scalar, steps done.
    params: float32 [P], the weights.
    adam_m, adam_v: float32 [P], Adam's moments.
    ema: dict of float32 [P], the EMAs, by `EMAs.names`.
    loss_history: dict, of `noise_levels`.
    quartiles: float32 [terms + 1, 4], sums of the loss terms since the last
      logged step, by quartile of t; the last row counts them.
    loss_scale: float32 scalar, 1 unless the precision is float16.
    good_steps: int64 scalar, finite steps since the loss scale last changed.
    skipped_steps: int64 scalar, the latest steps in a row whose gradient was
      not finite. Such a step changes no weight.

  Args:
    params: float32 [P], the initial weights.
    ema_names: of the EMAs.
    loss_history: dict of tensors, the initial one.
    num_terms: terms of the loss.
    loss_scale: the initial one.
  """

  def __init__(
      self, params, *, ema_names=(), loss_history=None, num_terms=1,
      loss_scale=1.0,
  ):  # fmt: skip
    self.step = variable(tf.zeros([], tf.int64))
    self.params = variable(params)
    self.adam_m = variable(tf.zeros_like(params))
    self.adam_v = variable(tf.zeros_like(params))
    self.ema = {name: variable(params) for name in ema_names}
    self.loss_history = tf.nest.map_structure(variable, loss_history or {})
    self.quartiles = variable(tf.zeros([num_terms + 1, 4]))
    self.loss_scale = variable(tf.constant(loss_scale))
    self.good_steps = variable(tf.zeros([], tf.int64))
    self.skipped_steps = variable(tf.zeros([], tf.int64))

  def variables(self):
    """The variables as a nest: a dict that mirrors the attributes."""
    return dict(vars(self))

  def read(self, *names):
    """The values, as the same nest of tensors: all, or those of some names."""
    variables = self.variables()
    return tf.nest.map_structure(
        tf.convert_to_tensor,
        {name: variables[name] for name in names or variables},
    )

  def specs(self):
    """Their shapes and types, as the same nest of `tf.TensorSpec`."""
    return tf.nest.map_structure(
        lambda v: tf.TensorSpec(v.shape, v.dtype), self.variables()
    )

  def handles(self):
    """The handles of this replica's variables, as the same nest."""
    return tf.nest.map_structure(lambda v: v.handle, self.variables())


def variable(value):
  """A variable of which each replica of the strategy has its own copy."""
  return tf.Variable(
      value,
      trainable=False,
      synchronization=tf.VariableSynchronization.ON_READ,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
  )
