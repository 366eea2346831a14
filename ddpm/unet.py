"""The U-Net of Ho, Jain and Abbeel 2020, in Keras layers, and its successors'.

Shapes: images are float [B, H, W, C] in about [-1, 1]; times are [B];
feature maps are [B, h, w, c], h = w = H / patch_size / 2^level; the embedding
of time (and class) is [B, 4 * channels].

Constants that a Keras default would get wrong: GroupNorm's epsilon is 1e-6;
convolutions start as VarianceScaling(fan_avg, uniform), and those that end a
residual branch at scale 1e-10, so that every block starts as the identity.
"""

import dataclasses
import math
import typing

import keras
import tensorflow as tf

from ddpm import rng

RESAMPLES = ('conv', 'block')
PADDINGS = ('same', 'symmetric')
EMBEDDING_ORDERS = ('sin_cos', 'cos_sin')
VARIANTS = ('ddpm', 'ddpmpp')
INITS = ('ho', 'torch', 'edm')


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
    head_channels: channels of a head, instead of their number; 0 for num_heads.
    dropout: rate of the dropout in each block.
    num_classes: classes the model is conditioned on; 0 for none.
    null_class: whether there is one more class, of number num_classes, which
      says nothing (classifier-free guidance).
    norm_groups: groups of each GroupNorm.
    norm_epsilon: its epsilon.
    scale_shift_norm: whether time scales and shifts what GroupNorm gives
      (Nichol and Dhariwal 2021); else it is added before.
    resample: 'conv', Ho's, or 'block', residual blocks that resample within
      (BigGAN's; Dhariwal and Nichol 2021).
    downsample_padding: of the convolution that halves: 'same', TensorFlow's,
      on an even size (0, 1), or 'symmetric', PyTorch's (1, 1).
    embedding_order: 'sin_cos', or 'cos_sin' as in Nichol and Dhariwal's code.
    embedding_shift: 1, or 0 as there: `timestep_embedding`.
    variant: 'ddpm', or 'ddpmpp', DDPM++ of Song et al. 2021b as in Karras et
      al. 2022: sums scaled by sqrt(1/2), going up attention after a level's
      last block alone, blocks that resample project their skip, and classes
      enter as one-hot vectors beside the time's sinusoids.
    init: 'ho'; 'torch', PyTorch's default, and exact zeros where a branch
      ends; 'edm', as ho, with small weights of attention.
    patch_size: the U-Net works on patch_size x patch_size pixels folded into
      channels (space to depth); 1 is Ho's.
    learned_variance: whether as many channels again say where the variance
      lies (`diffusion.Diffusion`).
    remat: whether to compute each block again in the backward pass, instead of
      keeping what it computed.
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
      head_channels=0,
      dropout=0.0,
      num_classes=0,
      null_class=False,
      norm_groups=32,
      norm_epsilon=1e-6,
      scale_shift_norm=False,
      resample='conv',
      downsample_padding='same',
      embedding_order='sin_cos',
      embedding_shift=1,
      variant='ddpm',
      init='ho',
      patch_size=1,
      learned_variance=False,
      remat=False,
      dtype='float32',
  ):
    super().__init__(name='unet', dtype=dtype)
    check_shapes(
        image_size=image_size,
        channels=channels,
        channel_multipliers=channel_multipliers,
        num_heads=num_heads,
        head_channels=head_channels,
        norm_groups=norm_groups,
        patch_size=patch_size,
    )
    self.image_shape = (image_size, image_size, image_channels)
    self.channels = channels
    self.patch_size = patch_size
    self.num_classes = num_classes
    self.variant = variant
    self.embedding_order = embedding_order
    self.embedding_shift = embedding_shift
    self.remat = remat
    embedding = 4 * channels
    settings = Settings(
        num_heads=num_heads,
        head_channels=head_channels,
        dropout=dropout,
        norm_groups=norm_groups,
        norm_epsilon=norm_epsilon,
        scale_shift_norm=scale_shift_norm,
        downsample_padding=downsample_padding,
        variant=variant,
        init=init,
        dtype=self.dtype_policy,
    )

    def attention(size, features, name):
      if size not in attention_resolutions and name != 'mid_attention':
        return None
      return Attention(features, settings, name=name)

    self.time_dense1 = settings.dense(embedding, name='time_dense1')
    self.time_dense2 = settings.dense(embedding, name='time_dense2')
    if num_classes and variant == 'ddpmpp':
      self.class_embedding = settings.dense(channels, name='class_embedding')
    elif num_classes:
      self.class_embedding = keras.layers.Embedding(
          num_classes + null_class,
          embedding,
          keras.initializers.RandomNormal(stddev=1.0)
          if init == 'torch'
          else 'uniform',
          dtype=self.dtype_policy,
          name='class_embedding',
      )
    self.conv_in = settings.conv3(channels, name='conv_in')

    # Every encoder output is kept, and concatenated once on the way up.
    size = image_size // patch_size
    skips = [channels]
    self.down = []
    for level, multiplier in enumerate(channel_multipliers):
      features = channels * multiplier
      for i in range(num_res_blocks):
        block = ResBlock(features, settings, name=f'down{level}_block{i}')
        attend = attention(size, features, f'down{level}_attention{i}')
        self.down.append((block, attend))
        skips.append(features)
      if level < len(channel_multipliers) - 1:
        name = f'down{level}_downsample'
        if resample == 'block':
          layer = ResBlock(features, settings, resample='down', name=name)
        else:
          layer = _downsample(features, settings, name=name)
        self.down.append((layer, None))
        skips.append(features)
        size //= 2

    self.mid = [
        (ResBlock(features, settings, name='mid_block0'),
         attention(size, features, 'mid_attention')),
        (ResBlock(features, settings, name='mid_block1'), None),
    ]  # fmt: skip

    self.up = []
    for level, multiplier in reversed(list(enumerate(channel_multipliers))):
      features = channels * multiplier
      for i in range(num_res_blocks + 1):
        block = ResBlock(features, settings, name=f'up{level}_block{i}')
        attend = None
        if variant == 'ddpm' or i == num_res_blocks:
          attend = attention(size, features, f'up{level}_attention{i}')
        self.up.append((block, attend))
      if level > 0:
        name = f'up{level}_upsample'
        if resample == 'block':
          layer = ResBlock(features, settings, resample='up', name=name)
        else:
          layer = Upsample(features, settings, name=name)
        self.up.append((layer, None))
        size *= 2

    self.norm_out = settings.norm(name='norm_out')
    self.conv_out = settings.conv3(
        image_channels * patch_size**2 * (2 if learned_variance else 1),
        ends_branch=True,
        name='conv_out',
    )
    self._build_layers(skips)
    if init == 'torch':
      self._init_biases()

  def _build_layers(self, skips):
    """Creates every weight from static shapes, without a symbolic call."""
    h = w = None
    embedding = 4 * self.channels
    self.time_dense1.build((None, self.channels))
    self.time_dense2.build((None, embedding))
    if self.num_classes and self.variant == 'ddpmpp':
      self.class_embedding.build((None, self.num_classes))
    elif self.num_classes:
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
      if _takes_skip(layer):
        features += skips.pop()
      features = _build(layer, features, embedding)
      if attention is not None:
        attention.build((None, h, w, features))
    self.norm_out.build((None, h, w, features))
    self.conv_out.build((None, h, w, features))
    self.built = True

  def _init_biases(self):
    """PyTorch's: as the weights, uniform in +-1 / sqrt(fan_in)."""
    for layer in self._flatten_layers():
      kernel = getattr(layer, 'kernel', None)
      # Where the weights are zero, so is the bias.
      if kernel is not None and tf.reduce_any(kernel.value != 0):
        limit = math.prod(kernel.shape[:-1]) ** -0.5
        uniform = keras.initializers.RandomUniform(-limit, limit)
        layer.bias.assign(uniform(layer.bias.shape))

  def call(self, images, times, labels=None, dropout_keys=None):
    """Runs the network.

    Args:
      images: float [B, H, W, C], noised images.
      times: [B], timesteps in [0, T), or what the process tells of its levels.
      labels: int32 [B] in [0, num_classes), if there are classes, or
        num_classes, if there is a null class.
      dropout_keys: uint32 [B, 2], one key an example; None for no dropout.

    Returns:
      float32 [B, H, W, C], or [B, H, W, 2 C] with a learned variance.
    """
    temb = self._embed(times, labels)  # [B, 4 channels]

    # Each layer that drops needs its own stream of every example's key.
    streams = iter(range(1 << 20))

    def apply(layer, attention, h):
      keys = None
      if dropout_keys is not None and getattr(layer, 'dropout', 0):
        keys = rng.fold_in(dropout_keys, next(streams))
      stage = [part for part in (layer, attention) if part is not None]
      return (_recomputed if self.remat else _run)(stage, h, temb, keys)

    h = tf.cast(images, self.compute_dtype)
    if self.patch_size > 1:
      h = tf.nn.space_to_depth(h, self.patch_size)
    h = self.conv_in(h)
    skips = [h]
    for layer, attention in self.down:
      h = apply(layer, attention, h)
      skips.append(h)
    for layer, attention in self.mid:
      h = apply(layer, attention, h)
    for layer, attention in self.up:
      if _takes_skip(layer):
        h = tf.concat([h, skips.pop()], axis=-1)
      h = apply(layer, attention, h)
    h = self.conv_out(tf.nn.silu(self.norm_out(h)))
    if self.patch_size > 1:
      h = tf.nn.depth_to_space(h, self.patch_size)
    return tf.cast(h, tf.float32)

  def _embed(self, times, labels):
    temb = timestep_embedding(
        times,
        self.channels,
        order=self.embedding_order,
        shift=self.embedding_shift,
    )  # [B, channels]
    if self.num_classes and self.variant == 'ddpmpp':
      # The null class is the vector 0.
      one_hot = tf.one_hot(labels, self.num_classes)
      temb += tf.cast(
          self.class_embedding(one_hot * math.sqrt(self.num_classes)),
          temb.dtype,
      )
    temb = self.time_dense1(temb)  # [B, 4 channels]
    temb = self.time_dense2(tf.nn.silu(temb))
    if self.num_classes and self.variant == 'ddpm':
      temb += self.class_embedding(labels)
    return tf.nn.silu(temb)  # each block starts with it


def _run(stage, h, temb, dropout_keys):
  """Applies a block, and the attention after it if there is one."""
  for layer in stage:
    if isinstance(layer, ResBlock):
      h = layer(h, temb, dropout_keys)
    else:
      h = layer(h)
  return h


def _recomputed(stage, h, temb, dropout_keys):
  """The same, but keeps only its inputs for the backward pass."""
  variables = [v for layer in stage for v in layer.trainable_variables]

  # The weights that `stateless_call` put in the variables' place are arguments,
  # as gradients flow to nothing else.
  @tf.recompute_grad
  def run(h, temb, *weights):
    with keras.StatelessScope(state_mapping=list(zip(variables, weights))):
      return _run(stage, h, temb, dropout_keys)

  return run(h, temb, *(v.value for v in variables))


class GroupNorm(keras.layers.GroupNormalization):
  """Keras's layer, whose statistics it takes a channel at a time.

  Keras splits the channels of the whole feature map in groups, and what is
  broadcast over five dimensions is several times slower on a CPU.
  """

  def call(self, x):
    """Maps [B, h, w, c] to the same shape."""
    features = x.shape[-1]
    size = features // self.groups

    def mean(y):
      """Over pixels and a group's channels: [B, 1, 1, c]."""
      y = tf.reduce_mean(y, [1, 2])
      y = tf.reduce_mean(tf.reshape(y, [-1, self.groups, size]), -1)
      return tf.repeat(y, size, axis=-1)[:, None, None, :]

    y = tf.cast(x, tf.float32)  # a sum of so many pixels needs it
    center = mean(y)
    variance = mean(tf.math.squared_difference(y, center))
    scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
    return tf.cast(y * scale + (self.beta - center * scale), x.dtype)


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
    h = tf.nn.silu(self.norm1(x))
    if self.resample == 'up':
      h, x = _conv_doubled(self.conv1, h), _double(x)
    elif self.resample == 'down':
      h, x = self.conv1(_halve(h)), _halve(x)
    else:
      h = self.conv1(h)
    time = self.time_dense(temb)[:, None, None, :]
    if self.scale_shift_norm:
      scale, shift = tf.split(time, 2, axis=-1)
      h = self.norm2(h) * (1.0 + scale) + shift
    else:
      h = self.norm2(h + time)
    h = tf.nn.silu(h)
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
    self.norm = settings.norm(name='norm')
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
    logits = tf.einsum('bqnd,bknd->bnqk', q, k)
    logits = tf.cast(logits, tf.float32) * width**-0.5
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


def _downsample(features, settings, *, name):
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

  Of the 3 x 3 pixels under the kernel 2 x 2 are different ones: even and odd
  rows and columns are four convolutions of x itself, with sums of weights.
  """
  kernel, bias = map(tf.convert_to_tensor, (conv.kernel, conv.bias))

  def phase(row, column):
    folded = _fold(_fold(kernel, row, axis=0), column, axis=1)
    padding = [[0, 0], [1 - row, row], [1 - column, column], [0, 0]]
    return tf.nn.bias_add(tf.nn.conv2d(x, folded, 1, padding), bias)

  h, w = x.shape[1:3]
  rows = [
      tf.stack([phase(row, column) for column in range(2)], 3)
      for row in range(2)
  ]  # each [B, h, w, 2, c]
  return tf.reshape(tf.stack(rows, 2), [-1, 2 * h, 2 * w, bias.shape[0]])


def _fold(kernel, odd, *, axis):
  """Weights of three pixels to those of the two that they are doubles of.

  An even pixel's double comes after it, an odd one's before.
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


def check_shapes(
    *,
    image_size,
    channels,
    channel_multipliers,
    num_heads,
    head_channels,
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
  heads = ('head_channels', head_channels) if head_channels else (
      'num_heads', num_heads
  )  # fmt: skip
  for multiplier in channel_multipliers:
    for what, number in (('norm_groups', norm_groups), heads):
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


def _takes_skip(layer):
  """Whether a layer going up takes an encoder's output: blocks of a level."""
  return isinstance(layer, ResBlock) and layer.resample is None


def _build(layer, features, embedding):
  """Builds a layer of the U-Net, and returns its number of channels."""
  shape = (None, None, None, features)
  if isinstance(layer, ResBlock):
    layer.build(shape, embedding)
    return layer.features
  layer.build(shape)
  return features
