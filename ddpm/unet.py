"""The U-Net of Ho, Jain and Abbeel 2020, in Keras layers.

Shapes: images are float [B, H, W, C] in about [-1, 1]; timesteps are [B];
feature maps are [B, h, w, c], h = w = H / patch_size / 2^level; the embedding
of time (and class) is [B, 4 * channels].

Constants that a Keras default would get wrong: GroupNorm's epsilon is 1e-6;
convolutions start as VarianceScaling(fan_avg, uniform), and those that end a
residual branch at scale 1e-10, so that every block starts as the identity.
"""

import math

import keras
import tensorflow as tf

from ddpm import rng


class UNet(keras.Model):
  """Predicts the noise (or x_0, or v) in a noised image.

  Args:
    image_size: height and width of the images, in pixels.
    image_channels: channels of the images, in and out.
    channels: base number of channels.
    channel_multipliers: channels of each level, in units of `channels`. Each
      level but the last ends with a halving of the resolution.
    num_res_blocks: residual blocks of a level going down; one more going up.
    attention_resolutions: heights of feature maps after whose blocks
      self-attention follows. The middle always has it.
    num_heads: heads of each attention.
    dropout: rate of the dropout in each block.
    num_classes: classes the model is conditioned on; 0 for none.
    norm_groups: groups of each GroupNorm.
    patch_size: the U-Net works on patch_size x patch_size pixels folded into
      channels (space to depth); 1 is Ho's.
    dtype: Keras dtype policy, such as 'mixed_bfloat16'. Weights, GroupNorm,
      softmax and output are float32 in all of them.

  Raises:
    ValueError: a size that cannot be halved, or channels that the groups or
      the heads do not divide.
  """

  def __init__(
      self,
      *,
      image_size,
      image_channels,
      channels,
      channel_multipliers,
      num_res_blocks,
      attention_resolutions,
      num_heads=1,
      dropout=0.0,
      num_classes=0,
      norm_groups=32,
      patch_size=1,
      dtype='float32',
  ):
    super().__init__(name='unet', dtype=dtype)
    check_shapes(
        image_size=image_size,
        channels=channels,
        channel_multipliers=channel_multipliers,
        num_heads=num_heads,
        norm_groups=norm_groups,
        patch_size=patch_size,
    )
    self.image_shape = (image_size, image_size, image_channels)
    self.channels = channels
    self.patch_size = patch_size
    self.num_classes = num_classes
    policy = self.dtype_policy
    embedding = 4 * channels

    def block(features, name):
      return ResBlock(
          features,
          dropout=dropout,
          norm_groups=norm_groups,
          dtype=policy,
          name=name,
      )

    def attention(size, features, name):
      if size not in attention_resolutions and name != 'mid_attention':
        return None
      return Attention(
          features,
          num_heads=num_heads,
          norm_groups=norm_groups,
          dtype=policy,
          name=name,
      )

    self.time_dense1 = _dense(embedding, dtype=policy, name='time_dense1')
    self.time_dense2 = _dense(embedding, dtype=policy, name='time_dense2')
    if num_classes:
      self.class_embedding = keras.layers.Embedding(
          num_classes, embedding, dtype=policy, name='class_embedding'
      )
    self.conv_in = _conv3(channels, dtype=policy, name='conv_in')

    # Every encoder output is kept, and concatenated once on the way up.
    size = image_size // patch_size
    skips = [channels]
    self.down = []
    for level, multiplier in enumerate(channel_multipliers):
      features = channels * multiplier
      for i in range(num_res_blocks):
        name = f'down{level}_block{i}'
        attend = attention(size, features, f'down{level}_attention{i}')
        self.down.append((block(features, name), attend))
        skips.append(features)
      if level < len(channel_multipliers) - 1:
        name = f'down{level}_downsample'
        downsample = _conv3(features, strides=2, dtype=policy, name=name)
        self.down.append((downsample, None))
        skips.append(features)
        size //= 2

    self.mid = [
        (block(features, 'mid_block0'),
         attention(size, features, 'mid_attention')),
        (block(features, 'mid_block1'), None),
    ]

    self.up = []
    for level, multiplier in reversed(list(enumerate(channel_multipliers))):
      features = channels * multiplier
      for i in range(num_res_blocks + 1):
        name = f'up{level}_block{i}'
        attend = attention(size, features, f'up{level}_attention{i}')
        self.up.append((block(features, name), attend))
      if level > 0:
        name = f'up{level}_upsample'
        self.up.append((Upsample(features, dtype=policy, name=name), None))
        size *= 2

    self.norm_out = _norm(norm_groups, dtype=policy, name='norm_out')
    self.conv_out = _conv3(
        image_channels * patch_size**2,
        scale=0.0,
        dtype=policy,
        name='conv_out',
    )
    self._build_layers(skips)

  def _build_layers(self, skips):
    """Creates every weight from static shapes, without a symbolic call."""
    h = w = None
    embedding = 4 * self.channels
    self.time_dense1.build((None, self.channels))
    self.time_dense2.build((None, embedding))
    if self.num_classes:
      self.class_embedding.build((None,))
    patches = self.image_shape[-1] * self.patch_size**2
    self.conv_in.build((None, h, w, patches))
    features = skips[0]
    for layer, attention in self.down + self.mid:
      features = _build(layer, features, embedding)
      if attention is not None:
        attention.build((None, h, w, features))
    skips = list(skips)
    for layer, attention in self.up:
      if isinstance(layer, ResBlock):
        features += skips.pop()
      features = _build(layer, features, embedding)
      if attention is not None:
        attention.build((None, h, w, features))
    self.norm_out.build((None, h, w, features))
    self.conv_out.build((None, h, w, features))
    self.built = True

  def call(self, images, timesteps, labels=None, dropout_keys=None):
    """Runs the network.

    Args:
      images: float [B, H, W, C], noised images.
      timesteps: [B], integers in [0, T).
      labels: int32 [B] in [0, num_classes), if there are classes.
      dropout_keys: uint32 [B, 2], one key an example; None for no dropout.

    Returns:
      float32 [B, H, W, C].
    """
    temb = timestep_embedding(timesteps, self.channels)  # [B, channels]
    temb = self.time_dense1(temb)  # [B, 4 channels]
    temb = self.time_dense2(tf.nn.silu(temb))
    if self.num_classes:
      temb += self.class_embedding(labels)
    temb = tf.nn.silu(temb)  # each block starts with it

    # Each layer that drops needs its own stream of every example's key.
    streams = iter(range(1 << 20))

    def apply(layer, h):
      if not isinstance(layer, ResBlock):
        return layer(h)
      if dropout_keys is None or not layer.dropout:
        return layer(h, temb)
      return layer(h, temb, rng.fold_in(dropout_keys, next(streams)))

    h = tf.cast(images, self.compute_dtype)
    if self.patch_size > 1:
      h = tf.nn.space_to_depth(h, self.patch_size)
    h = self.conv_in(h)
    skips = [h]
    for layer, attention in self.down:
      h = apply(layer, h)
      if attention is not None:
        h = attention(h)
      skips.append(h)
    for layer, attention in self.mid:
      h = apply(layer, h)
      if attention is not None:
        h = attention(h)
    for layer, attention in self.up:
      if isinstance(layer, ResBlock):
        h = tf.concat([h, skips.pop()], axis=-1)
      h = apply(layer, h)
      if attention is not None:
        h = attention(h)
    h = self.conv_out(tf.nn.silu(self.norm_out(h)))
    if self.patch_size > 1:
      h = tf.nn.depth_to_space(h, self.patch_size)
    return tf.cast(h, tf.float32)


class ResBlock(keras.layers.Layer):
  """GN swish conv3, + dense(temb), GN swish dropout conv3, + skip."""

  def __init__(self, features, *, dropout, norm_groups, **kwargs):
    super().__init__(**kwargs)
    policy = self.dtype_policy
    self.features = features
    self.dropout = dropout
    self.norm1 = _norm(norm_groups, dtype=policy, name='norm1')
    self.conv1 = _conv3(features, dtype=policy, name='conv1')
    self.time_dense = _dense(features, dtype=policy, name='time_dense')
    self.norm2 = _norm(norm_groups, dtype=policy, name='norm2')
    self.conv2 = _conv3(features, scale=0.0, dtype=policy, name='conv2')
    self.skip = _dense(features, dtype=policy, name='skip')

  def build(self, input_shape, embedding):
    inner_shape = (*input_shape[:-1], self.features)
    self.norm1.build(input_shape)
    self.conv1.build(input_shape)
    self.time_dense.build((None, embedding))
    self.norm2.build(inner_shape)
    self.conv2.build(inner_shape)
    if input_shape[-1] == self.features:
      self.skip = None
    else:
      self.skip.build(input_shape)
    self.built = True

  def call(self, x, temb, dropout_keys=None):
    """Maps x [B, h, w, c] and temb [B, 4 channels] to [B, h, w, features]."""
    h = self.conv1(tf.nn.silu(self.norm1(x)))
    h += self.time_dense(temb)[:, None, None, :]
    h = tf.nn.silu(self.norm2(h))
    if dropout_keys is not None:
      kept = rng.uniform(dropout_keys, h.shape[1:]) >= self.dropout
      scale = tf.cast(1.0 / (1.0 - self.dropout), h.dtype)
      h = tf.where(kept, h * scale, tf.zeros([], h.dtype))
    h = self.conv2(h)
    return h + (x if self.skip is None else self.skip(x))


class Attention(keras.layers.Layer):
  """Self-attention over the pixels of a feature map, with a skip."""

  def __init__(self, features, *, num_heads, norm_groups, **kwargs):
    super().__init__(**kwargs)
    policy = self.dtype_policy
    self.num_heads = num_heads
    self.norm = _norm(norm_groups, dtype=policy, name='norm')
    self.query = _dense(features, dtype=policy, name='query')
    self.key = _dense(features, dtype=policy, name='key')
    self.value = _dense(features, dtype=policy, name='value')
    self.out = _dense(features, scale=0.0, dtype=policy, name='out')

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
    logits = tf.einsum('bqnd,bknd->bnqk', q, k)
    logits = tf.cast(logits, tf.float32) * width**-0.5
    weights = tf.cast(tf.nn.softmax(logits), v.dtype)
    y = tf.einsum('bnqk,bknd->bqnd', weights, v)
    return x + self.out(tf.reshape(y, [-1, h, w, c]))


class Upsample(keras.layers.Layer):
  """Doubles the resolution: nearest neighbour, then conv3."""

  def __init__(self, features, **kwargs):
    super().__init__(**kwargs)
    self.conv = _conv3(features, dtype=self.dtype_policy, name='conv')

  def build(self, input_shape):
    self.conv.build(input_shape)
    self.built = True

  def call(self, x):
    """Maps [B, h, w, c] to [B, 2h, 2w, c]."""
    h, w, c = x.shape[1:]
    x = tf.broadcast_to(
        x[:, :, None, :, None, :], [tf.shape(x)[0], h, 2, w, 2, c]
    )
    return self.conv(tf.reshape(x, [-1, 2 * h, 2 * w, c]))


def timestep_embedding(timesteps, size):
  """Sinusoids of the time, sines first, as in Ho's code.

  Args:
    timesteps: [B].
    size: length of the embedding, even.

  Returns:
    float32 [B, size]: sin and cos of t * 10000^(-i / (size / 2 - 1)).
  """
  half = size // 2
  exponents = tf.range(half, dtype=tf.float32) / (half - 1)
  frequencies = tf.exp(-math.log(10000.0) * exponents)
  angles = tf.cast(timesteps, tf.float32)[:, None] * frequencies
  return tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1)


def check_shapes(
    *,
    image_size,
    channels,
    channel_multipliers,
    num_heads,
    norm_groups,
    patch_size,
):
  """Raises ValueError, in one line, for sizes that no U-Net can have."""
  halvings = len(channel_multipliers) - 1
  factor = patch_size * 2**halvings
  if image_size % factor:
    raise ValueError(
        f'image size {image_size} is not divisible by {factor} (patch size'
        f' {patch_size}, {halvings} halvings for {len(channel_multipliers)}'
        ' channel multipliers): use fewer model.channel_multipliers, or'
        f' data.image_size={max(1, round(image_size / factor)) * factor}'
    )
  for multiplier in channel_multipliers:
    for what, number in (
        ('norm_groups', norm_groups),
        ('num_heads', num_heads),
    ):
      if channels * multiplier % number:
        raise ValueError(
            f'{channels * multiplier} channels (model.channels {channels} x'
            f' multiplier {multiplier}) are not divisible by model.{what}'
            f' {number}'
        )
  if channels % 2 or channels < 4:
    raise ValueError(
        f'model.channels must be even and at least 4, got {channels}'
    )


def _build(layer, features, embedding):
  """Builds a layer of the U-Net, and returns its number of channels."""
  shape = (None, None, None, features)
  if isinstance(layer, ResBlock):
    layer.build(shape, embedding)
    return layer.features
  layer.build(shape)
  return features


def _init(scale):
  # Ho's "zero": Keras refuses scale 0, and so did TensorFlow 1.
  return keras.initializers.VarianceScaling(
      scale or 1e-10, mode='fan_avg', distribution='uniform'
  )


def _conv3(features, *, scale=1.0, strides=1, **kwargs):
  return keras.layers.Conv2D(
      features,
      3,
      strides=strides,
      padding='same',
      kernel_initializer=_init(scale),
      **kwargs,
  )


def _dense(features, *, scale=1.0, **kwargs):
  """A dense layer; over a feature map it is Ho's 1x1 convolution."""
  return keras.layers.Dense(features, kernel_initializer=_init(scale), **kwargs)


def _norm(groups, **kwargs):
  return keras.layers.GroupNormalization(groups, epsilon=1e-6, **kwargs)
