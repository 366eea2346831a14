"""The layers of the U-Net.

Shapes: feature maps are [B, h, w, c]; the embedding of time (and class) is
[B, 4 * channels].
"""

import dataclasses
import math
import typing

import keras
import tensorflow as tf

from ddpm import rng


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all blocks of a network share; the arguments of `UNet` say what."""

  num_heads: int = 1
  head_channels: int = 0
  dropout: float = 0.0
  norm_groups: int = 32
  norm_epsilon: float = 1e-6
  scale_shift_norm: bool = False
  downsample_padding: str = 'same'
  variant: str = 'ddpm'
  init: str = 'ho'
  dtype: typing.Any = 'float32'

  @property
  def skip_scale(self):
    """Of the sum of two branches: Song et al. 2021b keep its variance."""
    return math.sqrt(0.5) if self.variant == 'ddpmpp' else 1.0

  def conv3(
      self,
      features,
      *,
      ends_branch=False,
      layer=keras.layers.Conv2D,
      padding='same',
      **kwargs,
  ):
    init = self._initializer(ends_branch)
    return layer(
        features,
        3,
        padding=padding,
        kernel_initializer=init,
        dtype=self.dtype,
        **kwargs,
    )

  def dense(self, features, *, ends_branch=False, scale=1.0, **kwargs):
    """A dense layer; over a feature map it is Ho's 1x1 convolution."""
    init = self._initializer(ends_branch, scale)
    return keras.layers.Dense(
        features, kernel_initializer=init, dtype=self.dtype, **kwargs
    )

  def norm(self, **kwargs):
    return GroupNorm(
        self.norm_groups, epsilon=self.norm_epsilon, dtype=self.dtype, **kwargs
    )

  def _initializer(self, ends_branch, scale=1.0):
    if self.init == 'torch':
      if ends_branch:
        return 'zeros'
      # Uniform in +-1 / sqrt(fan_in).
      return keras.initializers.VarianceScaling(
          1.0 / 3.0, mode='fan_in', distribution='uniform'
      )
    # Ho's "zero" where a branch ends: Keras refuses scale 0, and so did
    # TensorFlow 1. EDM's weights times 1e-5 are the same.
    return keras.initializers.VarianceScaling(
        1e-10 if ends_branch else scale, mode='fan_avg', distribution='uniform'
    )


class GroupNorm(keras.layers.GroupNormalization):
  """Keras's layer, with scale and shift of each example, and the swish after.

  The statistics are taken per channel first: Keras splits the channels of the
  whole feature map in groups, and what is broadcast over five dimensions is
  several times slower on a CPU.
  """

  def __init__(self, groups, *, swish=True, **kwargs):
    super().__init__(groups, **kwargs)
    self.swish = swish

  def call(self, x, scale=0.0, shift=0.0):
    """Returns swish(norm(x) * (1 + scale) + shift).

    Args:
      x: [B, h, w, c].
      scale: [B, c], or a number.
      shift: [B, c], or a number.

    Returns:
      [B, h, w, c] in x's dtype.
    """
    shape = x.shape[0] or tf.shape(x)[0], x.shape[-1]
    scale, shift = tf.cast(scale, tf.float32), tf.cast(shift, tf.float32)
    return _normalized(
        x,
        tf.broadcast_to(self.gamma * (1.0 + scale), shape),
        tf.broadcast_to(self.beta * (1.0 + scale) + shift, shape),
        groups=self.groups,
        epsilon=self.epsilon,
        swish=self.swish,
    )


def _normalized(x, scale, shift, *, groups, epsilon, swish):
  """GroupNorm with its gradient in closed form.

  The gradient that TensorFlow derives goes over the feature map more often
  (tests/benchmarks/README.md). Few operations: tf.repeat alone would be 29, and
  a step is traced and optimized sooner with fewer.

  Args:
    x: [B, h, w, c].
    scale: float32 [B, c], of the normalized x.
    shift: float32 [B, c], then added.
    groups: number of them.
    epsilon: added to the variances.
    swish: whether the swish follows.

  Returns:
    [B, h, w, c] in x's dtype.
  """
  h, w, c = x.shape[1:]

  def mean(y):
    """Of a group's channels: [B, c] to [B, c]."""
    y = tf.reshape(y, [-1, groups, c // groups])
    y = tf.tile(tf.reduce_mean(y, -1, keepdims=True), [1, 1, c // groups])
    return tf.reshape(y, [-1, c])

  def over_pixels(y):
    return tf.reshape(y, [-1, 1, 1, c])

  @tf.custom_gradient
  def normalized(x, scale, shift):
    y = tf.cast(x, tf.float32)  # a sum of so many pixels needs it
    center = mean(tf.reduce_mean(y, [1, 2]))
    squares = tf.math.squared_difference(y, over_pixels(center))
    inverse_std = tf.math.rsqrt(
        mean(tf.reduce_mean(squares, [1, 2])) + epsilon
    )
    slope = inverse_std * scale
    linear = y * over_pixels(slope) + over_pixels(shift - center * slope)
    out = tf.nn.silu(linear) if swish else linear

    def gradient(upstream):
      y = tf.cast(x, tf.float32)
      d_linear = tf.cast(upstream, tf.float32)
      if swish:
        gate = tf.sigmoid(linear)
        d_linear *= out + gate * (1.0 - out)
      d_shift = tf.reduce_sum(d_linear, [1, 2])
      d_scale = inverse_std * (
          tf.reduce_sum(d_linear * y, [1, 2]) - center * d_shift
      )
      # What x does to the mean and to the standard deviation.
      through_mean = -inverse_std * mean(d_shift * scale) / (h * w)
      through_std = -(inverse_std**2) * mean(d_scale * scale) / (h * w)
      d_x = d_linear * over_pixels(slope) + (
          y * over_pixels(through_std)
          + over_pixels(through_mean - through_std * center)
      )
      return tf.cast(d_x, x.dtype), d_scale, d_shift

    return tf.cast(out, x.dtype), gradient

  return normalized(x, scale, shift)


class ResBlock(keras.layers.Layer):
  """GN swish conv3, + dense(temb), GN swish dropout conv3, + skip.

  One that resamples, 'down' (mean of 2 x 2) or 'up' (nearest neighbour), does
  so before its first convolution, and on its skip.
  """

  def __init__(self, features, settings, *, resample=None, **kwargs):
    super().__init__(dtype=settings.dtype, **kwargs)
    self.features = features
    self.dropout = settings.dropout
    self.resample = resample
    self.scale_shift_norm = settings.scale_shift_norm
    self.skip_scale = settings.skip_scale
    self.projects = resample is not None and settings.variant == 'ddpmpp'
    self.norm1 = settings.norm(name='norm1')
    self.conv1 = settings.conv3(features, name='conv1')
    self.time_dense = settings.dense(
        2 * features if self.scale_shift_norm else features, name='time_dense'
    )
    self.norm2 = settings.norm(name='norm2')
    self.conv2 = settings.conv3(features, ends_branch=True, name='conv2')
    self.skip = settings.dense(features, name='skip')

  def build(self, input_shape, embedding):
    inner_shape = (*input_shape[:-1], self.features)
    self.norm1.build(input_shape)
    self.conv1.build(input_shape)
    self.time_dense.build((None, embedding))
    self.norm2.build(inner_shape)
    self.conv2.build(inner_shape)
    if input_shape[-1] == self.features and not self.projects:
      self.skip = None
    else:
      self.skip.build(input_shape)
    self.built = True

  def call(self, x, temb, dropout_keys=None):
    """Maps x [B, h, w, c] and temb [B, 4 channels] to [B, h, w, features]."""
    h = self.norm1(x)
    if self.resample == 'up':
      h, x = _conv_doubled(self.conv1, h), _double(x)
    elif self.resample == 'down':
      h, x = self.conv1(_halve(h)), _halve(x)
    else:
      h = self.conv1(h)
    time = self.time_dense(temb)
    if self.scale_shift_norm:
      h = self.norm2(h, *tf.split(time, 2, axis=-1))
    else:
      h = self.norm2(h + time[:, None, None, :])
    if dropout_keys is not None:
      kept = rng.uniform(dropout_keys, h.shape[1:]) >= self.dropout
      scale = tf.cast(1.0 / (1.0 - self.dropout), h.dtype)
      h = tf.where(kept, h * scale, tf.zeros([], h.dtype))
    h = self.conv2(h)
    h += x if self.skip is None else self.skip(x)
    return h if self.skip_scale == 1.0 else h * self.skip_scale


class Attention(keras.layers.Layer):
  """Self-attention over the pixels of a feature map, with a skip."""

  def __init__(self, features, settings, **kwargs):
    super().__init__(dtype=settings.dtype, **kwargs)
    self.num_heads = settings.num_heads
    if settings.head_channels:
      self.num_heads = features // settings.head_channels
    self.skip_scale = settings.skip_scale
    # EDM's, of one layer for all three, whose weights it scales by sqrt(0.2).
    scale = 0.1 if settings.init == 'edm' else 1.0
    self.norm = settings.norm(swish=False, name='norm')
    self.query = settings.dense(features, scale=scale, name='query')
    self.key = settings.dense(features, scale=scale, name='key')
    self.value = settings.dense(features, scale=scale, name='value')
    self.out = settings.dense(features, ends_branch=True, name='out')

  def build(self, input_shape):
    for layer in (self.norm, self.query, self.key, self.value, self.out):
      layer.build(input_shape)
    self.built = True

  def call(self, x):
    """Maps [B, h, w, c] to the same shape."""
    h, w, c = x.shape[1:]
    heads, width = self.num_heads, c // self.num_heads
    y = self.norm(x)
    q, k, v = [
        tf.reshape(layer(y), [-1, h * w, heads, width])
        for layer in (self.query, self.key, self.value)
    ]
    # In half precision, their products would overflow, or lose most digits of
    # what softmax exponentiates. Scaled as in improved-diffusion.
    q, k = [tf.cast(part, tf.float32) * width**-0.25 for part in (q, k)]
    logits = tf.einsum('bqnd,bknd->bnqk', q, k)
    weights = tf.cast(tf.nn.softmax(logits), v.dtype)
    y = tf.einsum('bnqk,bknd->bqnd', weights, v)
    y = x + self.out(tf.reshape(y, [-1, h, w, c]))
    return y if self.skip_scale == 1.0 else y * self.skip_scale


class Upsample(keras.layers.Layer):
  """Doubles the resolution: nearest neighbour, then conv3."""

  def __init__(self, features, settings, **kwargs):
    super().__init__(dtype=settings.dtype, **kwargs)
    self.conv = settings.conv3(features, name='conv')

  def build(self, input_shape):
    self.conv.build(input_shape)
    self.built = True

  def call(self, x):
    """Maps [B, h, w, c] to [B, 2h, 2w, c]."""
    return _conv_doubled(self.conv, x)


class _PaddedConv(keras.layers.Conv2D):
  """A convolution over an image with one pixel more on each side."""

  def call(self, x):
    return super().call(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))


def downsample(features, settings, *, name):
  """Halves the resolution: conv3 with stride 2."""
  if settings.downsample_padding == 'symmetric':
    return settings.conv3(
        features, layer=_PaddedConv, padding='valid', strides=2, name=name
    )
  return settings.conv3(features, strides=2, name=name)


def _double(x):
  """[B, h, w, c] to [B, 2h, 2w, c], nearest neighbour."""
  h, w, c = x.shape[1:]
  x = tf.broadcast_to(
      x[:, :, None, :, None, :], [tf.shape(x)[0], h, 2, w, 2, c]
  )
  return tf.reshape(x, [-1, 2 * h, 2 * w, c])


def _conv_doubled(conv, x):
  """conv(_double(x)) of a conv3, with 4/9 of its multiplications.

  Of the 3 x 3 pixels under the kernel only 2 x 2 are distinct: even and odd
  rows and columns are four convolutions of x itself, with sums of weights.
  """
  kernel, bias = map(tf.convert_to_tensor, (conv.kernel, conv.bias))

  def phase(row, column):
    folded = _fold(_fold(kernel, row, axis=0), column, axis=1)
    # Padded first: oneDNN has no gradient of a convolution that pads as told.
    padding = [[0, 0], [1 - row, row], [1 - column, column], [0, 0]]
    padded = tf.pad(x, padding)
    return tf.nn.bias_add(tf.nn.conv2d(padded, folded, 1, 'VALID'), bias)

  h, w = x.shape[1:3]
  rows = [
      tf.stack([phase(row, column) for column in range(2)], 3)
      for row in range(2)
  ]  # each [B, h, w, 2, c]
  return tf.reshape(tf.stack(rows, 2), [-1, 2 * h, 2 * w, bias.shape[0]])


def _fold(kernel, odd, *, axis):
  """Folds the weights of three upsampled pixels into those of their sources.

  The three have two sources: an even pixel shares its source with the next
  pixel, an odd one with the one before.
  """
  before, own, after = tf.split(kernel, 3, axis)
  pair = [before + own, after] if odd else [before, own + after]
  return tf.concat(pair, axis)


def _halve(x):
  """[B, h, w, c] to [B, h / 2, w / 2, c], the mean of 2 x 2."""
  h, w, c = x.shape[1:]
  return tf.reduce_mean(
      tf.reshape(x, [-1, h // 2, 2, w // 2, 2, c]), axis=[2, 4]
  )


def timestep_embedding(times, size, *, order='sin_cos', shift=1):
  """Sinusoids of the time, by default as in Ho's code.

  Args:
    times: [B].
    size: length of the embedding, even.
    order: 'sin_cos' or 'cos_sin'.
    shift: 1: the last frequency is 1 / 10000; 0: it would be that of one more.

  Returns:
    float32 [B, size]: sin and cos of t * 10000^(-i / (size / 2 - shift)).
  """
  half = size // 2
  exponents = tf.range(half, dtype=tf.float32) / (half - shift)
  frequencies = tf.exp(-math.log(10000.0) * exponents)
  angles = tf.cast(times, tf.float32)[:, None] * frequencies
  waves = [tf.sin(angles), tf.cos(angles)]
  return tf.concat(waves if order == 'sin_cos' else waves[::-1], axis=-1)
