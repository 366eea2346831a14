"""FLOPs and memory of a step, against counts by hand."""

import pytest
from support import tiny_config
import tensorflow as tf

from ddpm.nn import flat
from ddpm.nn import unet
from ddpm.run import build
from ddpm.training import cost
from ddpm.training import step as step_lib

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


def cost_of(config, images=BATCH, jit_compile=False):
  return cost.of_step(config, images, jit_compile=jit_compile)


@pytest.mark.parametrize('accumulation_steps', [1, 2])
def test_flops_are_those_of_all_layers(accumulation_steps):
  config = tiny_config(**{'train.accumulation_steps': accumulation_steps})
  everything, inner = multiplications(config)
  got = cost_of(config)
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
  plain, remat = (
      cost_of(tiny_config(**{'train.remat': remat}), images=64)
      for remat in (False, True)
  )
  assert plain.flops < remat.flops < 4 / 3 * plain.flops
  assert remat.gradient_bytes < 0.6 * plain.gradient_bytes
  assert remat.peak_bytes < plain.peak_bytes


def test_less_is_reduced_in_bfloat16():
  plain = cost_of(tiny_config())
  half = cost_of(tiny_config(**{'distribute.all_reduce_dtype': 'bfloat16'}))
  assert plain.reduced_bytes - half.reduced_bytes == 2 * plain.parameters
  assert plain.state_bytes == 4 * 4 * plain.parameters  # one EMA


def test_an_update_in_place_needs_no_second_state():
  plain, in_place = (
      cost_of(tiny_config(), images=1, jit_compile=jit)
      for jit in (False, True)
  )
  state, gradients = plain.state_bytes, 2 * 4 * plain.parameters
  assert plain.peak_bytes == 2 * state + gradients
  # The gradient needs more than the update.
  assert in_place.peak_bytes == state + in_place.gradient_bytes
  assert in_place.gradient_bytes > gradients


def test_the_peak_is_what_is_in_memory_at_once():
  @tf.function(input_signature=[tf.TensorSpec([5, 3])])
  def gradient(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = tf.exp(tf.sin(x))  # exp's gradient uses its result, sin's only x
      z = tf.tanh(tf.reshape(y, [-1]))  # tanh's uses its result
      z = tf.reduce_sum(tf.reshape(z, [3, 5]))  # the same memory
    return tape.gradient(z, x)

  # At once: the results of exp and tanh, the gradient before and after tanh.
  peak = cost._peak_bytes(gradient.get_concrete_function().graph)
  assert peak == 4 * 15 * 4


def test_what_is_not_used_any_more_is_freed():
  @tf.function(input_signature=[tf.TensorSpec([100])])
  def chain(x):
    for _ in range(10):
      x = tf.sin(x)
    return x

  # An operation's input and its output.
  peak = cost._peak_bytes(chain.get_concrete_function().graph)
  assert peak == 2 * 100 * 4


@pytest.mark.parametrize('init', unet.INITS)
def test_shapes_are_those_of_the_network(init):
  config = tiny_config(**{'model.init': init})
  train_step, specs = step_lib.without_weights(config)
  layout = flat.Layout(build.make_model(config))
  assert train_step.layout.to_json() == layout.to_json()
  assert specs['params'].shape == [layout.size]


def test_shapes_need_no_memory():
  """A network of 2 billion weights, more than most laptops could hold."""
  config = tiny_config(**{'model.channels': 2**13})
  train_step, specs = step_lib.without_weights(config)
  assert train_step.layout.size > 2e9
  assert specs['adam_m'].shape == [train_step.layout.size]
