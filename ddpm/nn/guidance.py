"""The network a sampler calls: weights, classes and guidance bound."""

import tensorflow as tf


def guided_network(model, layout, params, labels, *, guidance=1.0):
  """A network with its weights and its batch's labels.

  Args:
    model: `unet.UNet`.
    layout: its `flat.Layout`.
    params: float32 [P].
    labels: int32 [B]; ignored if the model has no classes.
    guidance: scale s of classifier-free guidance (Ho and Salimans 2021, whose
      w is s - 1): none + s (class - none); 1 for no guidance. Only a model
      with a null class has 'none'.

  Returns:
    Function (x float32 [B, H, W, C], time [B]) -> the model's output.
  """
  weights = layout.split(params)

  def call(x, time, labels):
    output, _ = model.stateless_call(weights, [], x, time, labels=labels)
    return output

  def network(x, time):
    if not model.num_classes:
      return call(x, time, None)
    if guidance == 1.0:
      return call(x, time, labels)
    none = tf.fill(tf.shape(labels), model.num_classes)
    output = call(
        tf.concat([x, x], 0),
        tf.concat([time, time], 0),
        tf.concat([labels, none], 0),
    )
    given, none = tf.split(output, 2)
    # A learned variance, the channels after the image's, is the class's.
    channels = x.shape[-1]
    guided = none + guidance * (given - none)
    return tf.concat([guided[..., :channels], given[..., channels:]], -1)

  return network
