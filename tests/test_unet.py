"""Parameter counts of the papers, a NumPy forward pass, refusals."""

from conftest import Network
import numpy as np
import pytest
import tensorflow as tf

from ddpm import config as config_lib
from ddpm import rng
from ddpm import unet


def test_cifar10_has_35_746_307_parameters():
  from configs import cifar10

  model = config_lib.build_model(cifar10.get_config())
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


class Oracle:
  """Ho's U-Net for one 8 x 8 configuration, written again in NumPy."""

  def __init__(self, network):
    weights = network.layout.split(network.params)
    names = [v.path for v in network.model.trainable_variables]
    self.w = {
        name: weight.numpy()
        for name, weight in zip(names, weights)
    }

  def silu(self, x):
    return x / (1 + np.exp(-x))

  def dense(self, x, name):
    return x @ self.w[name + '/kernel'] + self.w[name + '/bias']

  def norm(self, x, name, groups=4):
    b, h, w, c = x.shape
    g = x.reshape(b, h * w, groups, c // groups)
    mean = g.mean(axis=(1, 3), keepdims=True)
    var = g.var(axis=(1, 3), keepdims=True)
    g = ((g - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    return g * self.w[name + '/gamma'] + self.w[name + '/beta']

  def conv(self, x, name, stride=1):
    kernel = self.w[name + '/kernel']
    h, w = x.shape[1:3]
    # TensorFlow's SAME: one pixel on each side, or (0, 1) with stride 2.
    pad = (1, 1) if stride == 1 else (0, 1)
    x = np.pad(x, [(0, 0), pad, pad, (0, 0)])
    out = sum(
        x[:, i : i + h : stride, j : j + w : stride] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    return out + self.w[name + '/bias']

  def block(self, x, temb, name):
    h = self.conv(self.silu(self.norm(x, name + '/norm1')), name + '/conv1')
    h = h + self.dense(self.silu(temb), name + '/time_dense')[:, None, None]
    h = self.conv(self.silu(self.norm(h, name + '/norm2')), name + '/conv2')
    if name + '/skip/kernel' in self.w:
      x = self.dense(x, name + '/skip')
    return x + h

  def attention(self, x, name):
    b, h, w, c = x.shape
    y = self.norm(x, name + '/norm').reshape(b, h * w, c)
    q, k, v = [self.dense(y, f'{name}/{n}') for n in ('query', 'key', 'value')]
    logits = q @ k.swapaxes(1, 2) / np.sqrt(c)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return x + self.dense(weights @ v, name + '/out').reshape(x.shape)

  def __call__(self, x, t):
    freqs = np.exp(-np.log(10000) * np.arange(4) / 3)
    temb = np.concatenate([np.sin(t[:, None] * freqs),
                           np.cos(t[:, None] * freqs)], axis=1)  # fmt: skip
    temb = self.dense(self.silu(self.dense(temb, 'time_dense1')), 'time_dense2')
    h0 = self.conv(x, 'conv_in')
    h1 = self.block(h0, temb, 'down0_block0')
    h2 = self.conv(h1, 'down0_downsample', stride=2)
    h3 = self.attention(self.block(h2, temb, 'down1_block0'),
                        'down1_attention0')  # fmt: skip
    h = self.block(h3, temb, 'mid_block0')
    h = self.block(self.attention(h, 'mid_attention'), temb, 'mid_block1')
    for i, skip in enumerate((h3, h2)):
      h = self.block(np.concatenate([h, skip], -1), temb, f'up1_block{i}')
      h = self.attention(h, f'up1_attention{i}')
    h = self.conv(h.repeat(2, axis=1).repeat(2, axis=2), 'up1_upsample/conv')
    for i, skip in enumerate((h1, h0)):
      h = self.block(np.concatenate([h, skip], -1), temb, f'up0_block{i}')
    return self.conv(self.silu(self.norm(h, 'norm_out')), 'conv_out')


def test_agrees_with_numpy(network):
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  t = np.array([0, 7, 19])
  weights = network.layout.split(network.params)
  got, _ = network.model.stateless_call(weights, [], x, t)
  expected = Oracle(network)(x.astype(np.float64), t)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_heads_split_the_channels():
  layer = unet.Attention(8, unet.Settings(num_heads=2, norm_groups=4))
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


def test_starts_as_zero():
  network = Network()
  output = network.model(tf.ones([1, 8, 8, 1]), tf.constant([5]))
  assert np.abs(output).max() < 1e-4


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'image_size': 30, 'channel_multipliers': (1, 1, 1)},
         'image size 30 is not divisible by 4'),
        ({'channels': 6}, '6 channels .* not divisible by model.norm_groups 4'),
        ({'num_heads': 3}, 'not divisible by model.num_heads 3'),
        ({'channels': 1, 'norm_groups': 1}, 'even and at least 4, got 1'),
    ],
)  # fmt: skip
def test_refuses(settings, message):
  with pytest.raises(ValueError, match=message):
    Network(**settings)
