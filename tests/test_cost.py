"""FLOPs and memory of a step, against counts by hand."""

import pytest
from support import tiny_config
import tensorflow as tf

from ddpm.run import build
from ddpm.training import cost

SIZE, CHANNELS, BATCH = 7, 8, 4  # of the tiny network's feature maps


def multiplications(config):
  """Of an image's forward pass: all, and those whose input needs a gradient."""
  n, c = SIZE**2, CHANNELS
  folded = config.model.patch_size**2  # channels of the image
  attention = 4 * n * c * c + 2 * n * n * c
  block = n * 18 * c * c + 4 * c * c
  wide_block = n * (27 + 2) * c * c + 4 * c * c  # with the skip's channels
  inner = 3 * block + 2 * wide_block + attention + n * 9 * c * folded
  inner += 4 * c * 4 * c
  first = n * 9 * folded * c + c * 4 * c
  return inner + first, inner


@pytest.mark.parametrize('accumulation_steps', [1, 2])
def test_flops_are_those_of_all_layers(accumulation_steps):
  config = tiny_config(**{'train.accumulation_steps': accumulation_steps})
  everything, inner = multiplications(config)
  got = cost.of_step(config, BATCH)
  # The gradient of the weights costs as much as the layer; so does that of its
  # input.
  assert got.flops == 2 * BATCH * (2 * everything + inner)


def test_flops_of_an_image_are_three_forward_passes():
  config = tiny_config(**{'train.remat': True})
  everything, _ = multiplications(config)
  model = build.make_model(config)
  assert cost.of_training_on_an_image(model) == 3 * 2 * everything
  # Classes enter by a table, which costs no product.
  model = build.make_model(tiny_config(**{'model.num_classes': 10}))
  assert cost.of_training_on_an_image(model) == 3 * 2 * everything


def test_remat_computes_more_and_keeps_less():
  plain = cost.of_step(tiny_config(), BATCH)
  remat = cost.of_step(tiny_config(**{'train.remat': True}), BATCH)
  assert plain.flops < remat.flops < 4 / 3 * plain.flops
  assert remat.activation_bytes < plain.activation_bytes
  assert remat.peak_bytes < plain.peak_bytes


def test_less_is_reduced_in_bfloat16():
  plain = cost.of_step(tiny_config(), BATCH)
  half = cost.of_step(
      tiny_config(**{'distribute.all_reduce_dtype': 'bfloat16'}), BATCH
  )
  assert plain.reduced_bytes - half.reduced_bytes == 2 * plain.parameters
  assert plain.state_bytes == 4 * 4 * plain.parameters  # one EMA


def test_what_is_kept_is_what_the_gradient_uses():
  @tf.function(input_signature=[tf.TensorSpec([5, 3])])
  def gradient(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = tf.exp(tf.sin(x))  # exp's gradient uses its result, sin's only x
      z = tf.tanh(tf.reshape(y, [-1]))  # tanh's uses its result
      z = tf.reduce_sum(tf.reshape(z, [3, 5]) ** 2)  # the same memory
    return tape.gradient(z, x)

  operations = cost._needed(gradient.get_concrete_function().graph)
  assert cost._kept_bytes(operations) == 2 * 15 * 4
