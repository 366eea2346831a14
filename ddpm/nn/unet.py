"""The U-Net of Ho, Jain and Abbeel 2020, in Keras layers, and its successors'.

Shapes: images are float [B, H, W, C] in about [-1, 1]; times are [B];
feature maps are [B, h, w, c], h = w = H / patch_size / 2^level; the embedding
of time (and class) is [B, 4 * channels].

Constants that differ from Keras' defaults: GroupNorm's epsilon is 1e-6;
convolutions start as VarianceScaling(fan_avg, uniform), those that end a
residual branch at scale 1e-10, so that every block starts as the identity.
"""

import math
import numbers
import typing

import keras
import numpy as np
import tensorflow as tf

from ddpm import rng
from ddpm.nn import layers

RESAMPLES = ('conv', 'block')
PADDINGS = ('same', 'symmetric')
EMBEDDING_ORDERS = ('sin_cos', 'cos_sin')
VARIANTS = ('ddpm', 'ddpmpp')
INITS = ('ho', 'torch', 'edm')


class UNet(keras.Model):
  """Predicts the noise (or x_0, or v) in a noised image.

  Args:
    image_size: height and width of the images, in pixels: a pair, or one number
      for both.
    image_channels: channels of the images, in and out.
    channels: base number of channels.
    channel_multipliers: channels of each level, in units of `channels`; see
      `widths`. Each level but the last ends with a halving of the resolution.
    num_res_blocks: residual blocks of a level going down; one more going up.
    attention_resolutions: heights of feature maps after whose blocks
      self-attention follows. The middle always has it.
    num_heads: heads of each attention.
    head_channels: channels per head, instead of num_heads; 0 to use num_heads.
    dropout: rate of the dropout in each block.
    num_classes: classes the model is conditioned on; 0 for none.
    null_class: whether there is one more class, number num_classes, for no
      class (classifier-free guidance).
    norm_groups: groups of each GroupNorm.
    norm_epsilon: its epsilon.
    scale_shift_norm: whether time scales and shifts GroupNorm's output (Nichol
      and Dhariwal 2021); else it is added before.
    resample: 'conv', Ho's, or 'block', residual blocks that resample within
      (BigGAN's; Dhariwal and Nichol 2021).
    downsample_padding: of the convolution that halves: 'same', TensorFlow's,
      on an even size (0, 1), or 'symmetric', PyTorch's (1, 1).
    embedding_order: 'sin_cos', or 'cos_sin' as in Nichol and Dhariwal's code.
    embedding_shift: 1, or 0 as there: see `layers.timestep_embedding`.
    variant: 'ddpm', or 'ddpmpp', DDPM++ of Song et al. 2021b as in Karras et
      al. 2022: sums scaled by sqrt(1/2), going up attention after a level's
      last block alone, blocks that resample project their skip, and classes
      enter as one-hot vectors beside the time's sinusoids.
    init: 'ho'; 'torch', PyTorch's default, and exact zeros where a branch
      ends; 'edm', as ho, with small weights of attention.
    patch_size: the U-Net works on patch_size x patch_size pixels folded into
      channels (space to depth); 1 is Ho's.
    learned_variance: whether twice the channels come out, for a learned
      variance (`process.Process.split`).
    remat: whether to compute each block again in the backward pass, instead of
      keeping its activations.
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
        attention_resolutions=attention_resolutions,
        num_heads=num_heads,
        head_channels=head_channels,
        norm_groups=norm_groups,
        patch_size=patch_size,
    )
    height, width = np.broadcast_to(image_size, 2).tolist()
    self.image_shape = (height, width, image_channels)
    self.channels = channels
    self.patch_size = patch_size
    self.num_classes = num_classes
    self.dropout = dropout
    self.variant = variant
    self.embedding_order = embedding_order
    self.embedding_shift = embedding_shift
    self.remat = remat
    settings = layers.Settings(
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
    # Layers are made in the order of the flat vector, which their initial
    # weights depend on as well.
    self.time_dense1 = settings.dense(4 * channels, name='time_dense1')
    self.time_dense2 = settings.dense(4 * channels, name='time_dense2')
    if num_classes:
      self.class_embedding = self._class_embedding(settings, null_class)
    self.conv_in = settings.conv3(channels, name='conv_in')
    self.stages = list(
        _plan(
            settings,
            channels=widths(channels, channel_multipliers),
            num_res_blocks=num_res_blocks,
            size=height // patch_size,
            attention_sizes=attention_resolutions,
            resample=resample,
        )
    )
    self.norm_out = settings.norm(name='norm_out')
    self.conv_out = settings.conv3(
        image_channels * patch_size**2 * (2 if learned_variance else 1),
        ends_branch=True,
        name='conv_out',
    )
    self._build_layers()
    if init == 'torch':
      self._init_biases()

  def _class_embedding(self, settings, null_class):
    name = 'class_embedding'
    if settings.variant == 'ddpmpp':
      return settings.dense(self.channels, name=name)
    uniform = 'uniform'
    if settings.init == 'torch':
      uniform = keras.initializers.RandomNormal(stddev=1.0)
    return keras.layers.Embedding(
        self.num_classes + null_class, 4 * self.channels, uniform,
        dtype=settings.dtype, name=name,
    )  # fmt: skip

  def _build_layers(self):
    """Creates every weight from static shapes, without a symbolic call."""
    embedding = 4 * self.channels
    self.time_dense1.build((None, self.channels))
    self.time_dense2.build((None, embedding))
    if self.num_classes:
      one_hot = self.variant == 'ddpmpp'
      self.class_embedding.build((None, *[self.num_classes] * one_hot))

    def build(layer, features):
      layer.build((None, None, None, features))

    build(self.conv_in, self.image_shape[-1] * self.patch_size**2)

    def build_stage(stage, features):
      shape = (None, None, None, features)
      if isinstance(stage.layer, layers.ResBlock):
        stage.layer.build(shape, embedding)
        features = stage.layer.features
      else:
        stage.layer.build(shape)
      if stage.attention is not None:
        build(stage.attention, features)
      return features

    # The same walk as `call`, on numbers of channels.
    features = self._walk(build_stage, self.channels, sum)
    build(self.norm_out, features)
    build(self.conv_out, features)
    self.built = True

  def _walk(self, apply, h, concat):
    """Goes through all stages, with the skips from the way down to that up.

    Args:
      apply: function (stage, h) -> h.
      h: output of conv_in.
      concat: function of a pair, h and a skip -> h.
    """
    skips = [h]
    for stage in self.stages:
      if stage.skip == 'pop':
        h = concat([h, skips.pop()])
      h = apply(stage, h)
      if stage.skip == 'push':
        skips.append(h)
    return h

  def _init_biases(self):
    """PyTorch's: uniform in +-1 / sqrt(fan_in), like its weights."""
    for layer in self._flatten_layers():
      kernel = getattr(layer, 'kernel', None)
      if kernel is None:
        continue
      # Where the weights are zero, so is the bias.
      if not isinstance(layer.kernel_initializer, keras.initializers.Zeros):
        limit = math.prod(kernel.shape[:-1]) ** -0.5
        uniform = keras.initializers.RandomUniform(-limit, limit)
        layer.bias.assign(uniform(layer.bias.shape))

  def call(self, images, times, labels=None, dropout_keys=None):
    """Runs the network.

    Args:
      images: float [B, H, W, C], noised images.
      times: [B], timesteps in [0, T), or another process's time.
      labels: int32 [B] in [0, num_classes), if there are classes, or
        num_classes, if there is a null class.
      dropout_keys: uint32 [B, 2], one key per example; None for no dropout.

    Returns:
      float32 [B, H, W, C], or [B, H, W, 2 C] with a learned variance.
    """
    temb = self._embed(times, labels)  # [B, 4 channels]

    # Each layer with dropout needs its own stream of every example's key.
    streams = iter(range(1 << 20))

    def apply(stage, h):
      keys = None
      if dropout_keys is not None and getattr(stage.layer, 'dropout', 0):
        keys = rng.fold_in(dropout_keys, next(streams))
      return (_recomputed if self.remat else _run)(stage, h, temb, keys)

    h = tf.cast(images, self.compute_dtype)
    if self.patch_size > 1:
      h = tf.nn.space_to_depth(h, self.patch_size)
    h = self._walk(
        apply, self.conv_in(h), lambda pair: tf.concat(pair, axis=-1)
    )
    h = self.conv_out(self.norm_out(h))
    if self.patch_size > 1:
      h = tf.nn.depth_to_space(h, self.patch_size)
    return tf.cast(h, tf.float32)

  def _embed(self, times, labels):
    temb = layers.timestep_embedding(
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


class Stage(typing.NamedTuple):
  """A layer of the U-Net, and the attention after it.

  Attributes:
    layer: `layers.ResBlock`, or a layer that resamples.
    attention: `layers.Attention`, or None.
    skip: 'push' if the output is a skip for the way up, 'pop' if a skip is
      concatenated to the input, '' if neither.
  """

  layer: keras.layers.Layer
  attention: layers.Attention | None
  skip: str


def _plan(
    settings, *, channels, num_res_blocks, size, attention_sizes, resample
):
  """Yields the stages of the U-Net: down, middle, up.

  Args:
    settings: `layers.Settings`.
    channels: of each level.
    num_res_blocks: of each level going down; one more going up.
    size: height of the first level's feature maps.
    attention_sizes: heights of feature maps with attention.
    resample: one of RESAMPLES.
  """

  def res_block(features, name, **kwargs):
    return layers.ResBlock(features, settings, name=name, **kwargs)

  def attention(features, name):
    return layers.Attention(features, settings, name=name)

  def resampling(direction, features, name):
    if resample == 'block':
      return res_block(features, name, resample=direction)
    layer = layers.downsample if direction == 'down' else layers.Upsample
    return layer(features, settings, name=name)

  last = len(channels) - 1
  for level, features in enumerate(channels):
    for i in range(num_res_blocks):
      block = res_block(features, f'down{level}_block{i}')
      attend = None
      if size in attention_sizes:
        attend = attention(features, f'down{level}_attention{i}')
      yield Stage(block, attend, 'push')
    if level < last:
      layer = resampling('down', features, f'down{level}_downsample')
      yield Stage(layer, None, 'push')
      size //= 2

  block = res_block(channels[-1], 'mid_block0')
  yield Stage(block, attention(channels[-1], 'mid_attention'), '')
  yield Stage(res_block(channels[-1], 'mid_block1'), None, '')

  for level, features in reversed(list(enumerate(channels))):
    for i in range(num_res_blocks + 1):
      block = res_block(features, f'up{level}_block{i}')
      attend = None
      # DDPM++ attends only after a level's last block.
      everywhere = settings.variant == 'ddpm' or i == num_res_blocks
      if size in attention_sizes and everywhere:
        attend = attention(features, f'up{level}_attention{i}')
      yield Stage(block, attend, 'pop')
    if level > 0:
      layer = resampling('up', features, f'up{level}_upsample')
      yield Stage(layer, None, '')
      size *= 2


def _run(stage, h, temb, dropout_keys):
  """Applies a stage's layer, and its attention if it has one."""
  if isinstance(stage.layer, layers.ResBlock):
    h = stage.layer(h, temb, dropout_keys)
  else:
    h = stage.layer(h)
  return h if stage.attention is None else stage.attention(h)


def _recomputed(stage, h, temb, dropout_keys):
  """`_run`, but keeps only its inputs for the backward pass."""
  parts = [stage.layer, *[stage.attention] * (stage.attention is not None)]
  variables = [v for part in parts for v in part.trainable_variables]

  # The weights that `stateless_call` put in the variables' place are arguments:
  # gradients flow to nothing else.
  @tf.recompute_grad
  def run(h, temb, *weights):
    with keras.StatelessScope(state_mapping=list(zip(variables, weights))):
      return _run(stage, h, temb, dropout_keys)

  return run(h, temb, *(v.value for v in variables))


def widths(channels, channel_multipliers):
  """Channels of each level: `channels` times its multiplier, such as 1 or 1.5.

  Raises:
    ValueError: they are not whole numbers, or none.
  """
  found = []
  for multiplier in channel_multipliers:
    number = isinstance(multiplier, numbers.Real)
    width = channels * multiplier if number else math.nan
    # A quotient of channels, such as 300 / 224, is rounded.
    if not 0.5 < width < math.inf or abs(width - round(width)) > 1e-6:
      raise ValueError(
          f'channel_multipliers has {multiplier!r}, expected numbers such as 1,'
          f' 1.5 and 2, which make whole numbers of {channels} channels'
      )
    found.append(round(width))
  return found


def heights(image_size, levels, patch_size=1):
  """Heights of the feature maps of each level."""
  height = np.broadcast_to(image_size, 2).tolist()[0] // patch_size
  return [height // 2**level for level in range(levels)]


def check_shapes(
    *,
    image_size,
    channels,
    channel_multipliers,
    attention_resolutions,
    num_heads,
    head_channels,
    norm_groups,
    patch_size,
):
  """Raises ValueError for sizes that no U-Net can have."""
  if not channel_multipliers:
    raise ValueError('channel_multipliers is empty, expected (1, 2), say')
  if channels % 2 or channels < 4:
    raise ValueError(f'channels is {channels}, expected even and at least 4')
  wide = widths(channels, channel_multipliers)
  halvings = len(wide) - 1
  factor = patch_size * 2**halvings
  sides = np.broadcast_to(image_size, 2).tolist()
  if any(side % factor for side in sides):
    nearest = [max(1, round(side / factor)) * factor for side in sides]
    shown, better = (
        side[0] if side[0] == side[1] else tuple(side)
        for side in (sides, nearest)
    )
    raise ValueError(
        f'channel_multipliers is {tuple(channel_multipliers)}, but the image'
        f' size {shown} is not divisible by {factor} (patch size'
        f' {patch_size}, {halvings} halvings): use fewer, or'
        f' data.image_size={better}'
    )
  _check_divides('norm_groups', norm_groups, [channels, *wide])
  attending = [
      width
      for width, height in zip(wide, heights(image_size, len(wide), patch_size))
      if height in attention_resolutions
  ]
  attending.append(wide[-1])  # The middle's.
  if head_channels:
    _check_divides('head_channels', head_channels, attending)
  else:
    _check_divides('num_heads', num_heads, attending)


def _check_divides(name, number, channels):
  """Raises ValueError unless a number divides all these numbers of channels."""
  for width in channels:
    if width % number:
      raise ValueError(
          f'{name} is {number}, which does not divide {width} channels: use'
          f' {math.gcd(number, *channels)}, for example'
      )
