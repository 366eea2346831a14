"""All that a run has to remember, as a few flat variables.

The weights of the network are one vector [P]. So an all-reduce is one
message, and Adam, clip, averages and checkpoints are a few ops, whatever the
number of layers. The network itself (`UNet`) only lends its code and shapes.
"""

import tensorflow as tf

from ddpm.optim import adam


class State:
  """The variables of a run. Create it in the scope of the strategy.

  Every replica holds a copy and makes the same update to it, from the same
  all-reduced gradient. To TensorFlow that is a variable synchronised on read
  whose first copy counts: no merge of replicas is needed to write it, it is
  saved once, and restored to every replica of whatever strategy reads it.

  Attributes:
    step: int64 scalar, steps done.
    params: float32 [P], the weights.
    adam_m, adam_v: float32 [P], Adam's moments.
    ema: dict of float32 [P], the averages, named by `ema.names`: '0.9999'.
    memory: dict, what the choice of timesteps remembers (`timesteps`).
    quartiles: float32 [terms + 1, 4], sums of the losses' terms since the last
      logged step, by quartile of t, and in the last row how many they are.
    loss_scale: float32 scalar, 1 unless the precision is float16.
    good_steps: int32 scalar, finite steps since the loss scale last changed.
    skipped_steps: int32 scalar, the last steps in a row whose gradient was
      not finite. Such a step changes no weight.

  Args:
    params: float32 [P], the initial weights.
    ema_names: of the averages.
    use_loss_scale: whether the precision is float16.
    memory: dict of tensors, `initial` of the choice of timesteps.
    num_terms: terms of the loss.
  """

  def __init__(
      self, params, *, ema_names, use_loss_scale, memory=None, num_terms=1
  ):
    self.step = _variable(tf.zeros([], tf.int64))
    self.params = _variable(params)
    self.adam_m = _variable(tf.zeros_like(params))
    self.adam_v = _variable(tf.zeros_like(params))
    self.ema = {name: _variable(params) for name in ema_names}
    self.memory = tf.nest.map_structure(_variable, memory or {})
    self.quartiles = _variable(tf.zeros([num_terms + 1, 4]))
    scale = adam.INITIAL_LOSS_SCALE if use_loss_scale else 1.0
    self.loss_scale = _variable(tf.constant(scale))
    self.good_steps = _variable(tf.zeros([], tf.int32))
    self.skipped_steps = _variable(tf.zeros([], tf.int32))

  def variables(self):
    """The variables as a nest: a dict that mirrors the attributes."""
    return dict(vars(self))

  def read(self):
    """The values, as the same nest of tensors."""
    return tf.nest.map_structure(tf.convert_to_tensor, self.variables())


def _variable(value):
  return tf.Variable(
      value,
      trainable=False,
      synchronization=tf.VariableSynchronization.ON_READ,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
  )
