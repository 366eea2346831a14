"""Parameter counts of the papers, a NumPy forward pass, refusals."""

import numpy as np
from oracles import unet as unet_oracle
import pytest
from support import Network
import tensorflow as tf

from configs import cifar10_edm
from configs import cifar10_iddpm
from ddpm import rng
from ddpm.nn import layers
from ddpm.nn import unet
from ddpm.run import build


def test_cifar10_has_35_746_307_parameters():
  from configs import cifar10

  model = build.make_model(cifar10.get_config())
  assert model.count_params() == 35_746_307


def test_256_pixels_have_113_673_219_parameters():
  model = unet.UNet(
      image_size=256,
      image_channels=3,
      channels=128,
      channel_multipliers=(1, 1, 2, 2, 4, 4),
      num_res_blocks=2,
      attention_resolutions=(16,),
  )
  assert model.count_params() == 113_673_219


def test_one_channel_has_35_741_697_parameters():
  model = unet.UNet(
      image_size=28,
      image_channels=1,
      channels=128,
      channel_multipliers=(1, 2, 2),
      num_res_blocks=2,
      attention_resolutions=(14,),
  )
  assert model.image_shape == (28, 28, 1)
  model = unet.UNet(
      image_size=32,
      image_channels=1,
      channels=128,
      channel_multipliers=(1, 2, 2, 2),
      num_res_blocks=2,
      attention_resolutions=(16,),
  )
  assert model.count_params() == 35_741_697


def _count(
    channels, multipliers, blocks, attention, size, *, out, scale_shift=False,
    ddpmpp=False,
):  # fmt: skip
  """Parameters of a U-Net, summed layer by layer from the papers' tables."""
  embedding = 4 * channels

  def conv(a, b, kernel=9):
    return kernel * a * b + b

  def block(a, b, project=False):
    time = conv(embedding, 2 * b if scale_shift else b, 1)
    skip = conv(a, b, 1) if a != b or project else 0
    return 2 * a + conv(a, b) + time + 2 * b + conv(b, b) + skip

  def attend(c):
    return 2 * c + 4 * conv(c, c, 1)

  widths = [channels * m for m in multipliers]
  resample = (lambda c: block(c, c, True)) if ddpmpp else (lambda c: conv(c, c))
  total = conv(channels, embedding, 1) + conv(embedding, embedding, 1)
  total += conv(3, channels)
  skips, c = [channels], channels
  for level, width in enumerate(widths):
    for _ in range(blocks):
      total += block(c, width) + (attend(width) if size in attention else 0)
      c = width
      skips.append(c)
    if level < len(widths) - 1:
      total += resample(c)
      skips.append(c)
      size //= 2
  total += 2 * block(c, c) + attend(c)
  for level, width in reversed(list(enumerate(widths))):
    for i in range(blocks + 1):
      total += block(c + skips.pop(), width)
      if size in attention and (not ddpmpp or i == blocks):
        total += attend(width)
      c = width
    if level:
      total += resample(c)
      size *= 2
  return total + 2 * c + conv(c, out)


def test_improved_ddpm_and_edm_have_their_parameters():
  iddpm = build.make_model(cifar10_iddpm.get_config())
  expected = _count(
      128, (1, 2, 2, 2), 3, (16, 8), 32, out=6, scale_shift=True
  )
  assert iddpm.count_params() == expected == 52_546_438
  edm = build.make_model(cifar10_edm.get_config())
  expected = _count(128, (2, 2, 2), 4, (16,), 32, out=3, ddpmpp=True)
  # Theirs counts 55,733,891, with 9 * 128 of augmentation.
  assert edm.count_params() == expected == 55_733_891 - 9 * 128
  # 10 classes enter by a layer of 10 x 128, and a bias.
  edm = build.make_model(cifar10_edm.get_config('conditional'))
  assert edm.count_params() == expected + 11 * 128


IDDPM = {
    'norm_epsilon': 1e-3, 'scale_shift_norm': True, 'num_classes': 3,
    'downsample_padding': 'symmetric', 'embedding_order': 'cos_sin',
    'embedding_shift': 0, 'null_class': True, 'init': 'torch',
}  # fmt: skip
DDPMPP = {
    'variant': 'ddpmpp', 'resample': 'block', 'num_classes': 3, 'init': 'edm',
}  # fmt: skip


@pytest.mark.parametrize(
    'settings', [{}, {'dropout': 0.1}, IDDPM, DDPMPP, {'resample': 'block'}]
)
def test_agrees_with_numpy(settings):
  network = Network(**settings)
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  t = np.array([0, 7, 19])
  # The third class is none.
  labels = np.array([0, 2, 3]) if 'num_classes' in settings else None
  weights = network.layout.split(network.params)
  got, _ = network.model.stateless_call(weights, [], x, t, labels=labels)
  oracle = unet_oracle.UNet(network, **settings)
  expected = oracle(x.astype(np.float64), t, labels)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ddpmpp_attends_after_a_levels_last_block_alone():
  names = {v.path for v in Network(**DDPMPP).model.trainable_variables}
  assert 'up1_attention1/query/kernel' in names
  assert 'up1_attention0/query/kernel' not in names
  assert 'down1_attention0/query/kernel' in names
  assert 'down0_downsample/skip/kernel' in names


def test_initial_weights_of_pytorch():
  """Uniform in +-1 / sqrt(fan_in), biases too, and zeros end a branch."""
  model = Network(init='torch', channels=32, num_classes=3).model
  weights = {v.path: v.numpy() for v in model.trainable_variables}
  for name in ('down0_block0/conv1', 'time_dense2', 'mid_attention/query'):
    kernel, bias = weights[name + '/kernel'], weights[name + '/bias']
    limit = np.prod(kernel.shape[:-1]) ** -0.5
    for values in (kernel, bias):
      assert np.abs(values).max() <= limit
      assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.2)
  for name in ('down0_block0/conv2', 'mid_attention/out', 'conv_out'):
    assert not np.any(weights[name + '/kernel'])
    assert not np.any(weights[name + '/bias'])
  classes = weights['class_embedding/embeddings']
  assert classes.std() == pytest.approx(1, rel=0.15)


def test_initial_attention_of_edm():
  weights = {
      v.path: v.numpy()
      for v in Network(init='edm', channels=32).model.trainable_variables
  }
  query = weights['mid_attention/query/kernel']
  # Xavier's of a layer from c to 3 c, times sqrt(0.2).
  limit = np.sqrt(0.2) * np.sqrt(6 / (64 + 3 * 64))
  assert 0.95 * limit < np.abs(query).max() <= limit


def test_a_learned_variance_has_channels_of_its_own():
  """Beside the image's, also where pixels are folded."""
  network = Network(patch_size=2, learned_variance=True)
  weights = network.layout.split(network.params)
  names = [v.path for v in network.model.trainable_variables]
  x, t = tf.random.stateless_normal([2, 8, 8, 1], (0, 0)), tf.constant([3, 3])
  before, _ = network.model.stateless_call(weights, [], x, t)
  assert before.shape == (2, 8, 8, 2)
  i = names.index('conv_out/bias')
  # depth_to_space takes a pixel's channels from beside one another.
  weights[i] += tf.tile([0.0, 1.0], [4])
  after, _ = network.model.stateless_call(weights, [], x, t)
  np.testing.assert_array_equal(after[..., 0], before[..., 0])
  np.testing.assert_allclose(after[..., 1], before[..., 1] + 1, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'mixed_bfloat16'])
def test_remat_changes_no_gradient(dtype):
  x = tf.random.stateless_normal([2, 8, 8, 1], (0, 0))
  keys = rng.fold_in(rng.key(0), tf.range(2))
  gradients = {}
  for remat in (False, True):
    network = Network(dropout=0.1, remat=remat, dtype=dtype)

    def gradient(params, network=network):
      with tf.GradientTape() as tape:
        tape.watch(params)
        output, _ = network.model.stateless_call(
            network.layout.split(params), [], x, tf.constant([3, 9]),
            dropout_keys=keys,
        )  # fmt: skip
        loss = tf.reduce_sum(tf.square(output - x))
      return tape.gradient(loss, params)

    function = tf.function(gradient, autograph=False)
    gradients[remat] = function(_params_of(network)).numpy()
    graph = function.get_concrete_function(_params_of(network)).graph
    gradients[remat, 'ops'] = len(graph.get_operations())
  scale = np.abs(gradients[False]).max()
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  assert np.abs(gradients[True] - gradients[False]).max() < tolerance * scale
  # The forward pass of each block is there twice.
  assert gradients[True, 'ops'] > 1.2 * gradients[False, 'ops']


def _params_of(network):
  """The same weights for every network of this size."""
  return 0.1 * tf.random.stateless_normal([network.layout.size], (5, 6))


def test_heads_split_the_channels():
  layer = layers.Attention(8, layers.Settings(num_heads=2, norm_groups=4))
  layer.build((None, 2, 2, 8))
  x = np.random.default_rng(0).normal(size=(1, 2, 2, 8)).astype(np.float32)
  layer.out.kernel.assign(np.eye(8))
  y = layer.norm(x)
  q, k, v = [
      np.reshape(part(y), [4, 2, 4]) for part in
      (layer.query, layer.key, layer.value)
  ]  # fmt: skip
  expected = np.empty([4, 2, 4])
  for head in range(2):
    logits = q[:, head] @ k[:, head].T / np.sqrt(4)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected[:, head] = weights @ v[:, head]
  np.testing.assert_allclose(
      layer(x) - x, expected.reshape(1, 2, 2, 8), atol=1e-5
  )


@pytest.mark.parametrize(
    'dtype, tolerance', [('mixed_float16', 0.01), ('mixed_bfloat16', 0.05)]
)
def test_sharp_attention_in_half_precision(dtype, tolerance):
  """Products of query and key near float16's limit of 65,504, and above."""
  c = 512
  x = np.random.default_rng(1).normal(size=(1, 8, 8, c)).astype(np.float32)
  outputs = {}
  for policy in ('float32', dtype):
    layer = layers.Attention(c, layers.Settings(dtype=policy, norm_groups=4))
    layer.build((None, 8, 8, c))
    # Query and key are alike, so that each pixel attends to itself.
    for part in (layer.query, layer.key):
      part.kernel.assign(12 * np.eye(c))
    layer.value.kernel.assign(np.eye(c))
    layer.out.kernel.assign(np.eye(c))
    outputs[policy] = np.float32(layer(tf.cast(x, layer.compute_dtype)))
  difference = outputs[dtype] - outputs['float32']
  assert np.sqrt(np.mean(difference**2)) < tolerance


def test_heads_by_their_channels():
  settings = layers.Settings(head_channels=4, norm_groups=4)
  assert layers.Attention(8, settings).num_heads == 2
  assert layers.Attention(16, settings).num_heads == 4


def test_dropout_depends_on_an_examples_own_key(network):
  x = tf.ones([4, 8, 8, 1])
  t = tf.zeros([4], tf.int32)
  weights = network.layout.split(network.params)
  keys = rng.fold_in(rng.key(0), tf.range(4))

  def run(x, t, keys):
    return network.model.stateless_call(weights, [], x, t, dropout_keys=keys)[0]

  whole = run(x, t, keys).numpy()
  assert np.abs(whole[0] - whole[1]).max() > 1e-3
  half = run(x[2:], t[2:], keys[2:])
  np.testing.assert_allclose(half, whole[2:], atol=1e-5)
  plain = run(x, t, None).numpy()
  np.testing.assert_allclose(plain[0], plain[1], atol=1e-5)


def test_patches_classes_and_mixed_precision():
  network = Network(patch_size=2, num_classes=3, dtype='mixed_bfloat16')
  weights = network.layout.split(network.params)
  x = tf.random.stateless_normal([2, 8, 8, 1], (0, 0))
  t = tf.constant([3, 3])
  outputs = [
      network.model.stateless_call(weights, [], x, t, labels=labels)
      for labels in (tf.constant([0, 0]), tf.constant([2, 2]))
  ]
  first, second = [output.numpy() for output, _ in outputs]
  assert first.dtype == np.float32 and first.shape == (2, 8, 8, 1)
  assert np.abs(first - second).max() > 1e-3
  assert {w.dtype for w in network.model.trainable_variables} == {'float32'}


def test_levels_of_one_and_a_half_times_the_channels():
  network = Network(channel_multipliers=(1, 1.5), head_channels=12)
  output = network.model(tf.ones([1, 8, 8, 1]), tf.constant([5]))
  assert output.shape == (1, 8, 8, 1)
  widths = {v.shape[-1] for v in network.model.trainable_variables}
  assert {8, 12} < widths


def test_starts_as_zero():
  network = Network()
  output = network.model(tf.ones([1, 8, 8, 1]), tf.constant([5]))
  assert np.abs(output).max() < 1e-4


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'image_size': 30, 'channel_multipliers': (1, 1, 1)},
         'channel_multipliers is .* image size 30 is not divisible by 4'),
        ({'channels': 6}, '^norm_groups is 4, .* not divide 6 channels'),
        # conv_in's, which no multiplier says.
        ({'channel_multipliers': (2, 2), 'norm_groups': 16},
         '^norm_groups is 16, which does not divide 8 channels: use 8, for'),
        ({'num_heads': 3}, '^num_heads is 3, which does not'),
        ({'head_channels': 3}, '^head_channels is 3, which does'),
        ({'head_channels': 16, 'attention_resolutions': (8,)},
         '^head_channels is 16, which does not divide 8 channels: use 8, for'),
        ({'channels': 1, 'norm_groups': 1}, '^channels is 1, expected even'),
    ],
)  # fmt: skip
def test_refuses(settings, message):
  with pytest.raises(ValueError, match=message):
    Network(**settings)
