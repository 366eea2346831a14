"""The U-Net of Ho, Jain and Abbeel 2020, in Keras layers, and its successors'.

Shapes: images are float [B, H, W, C] in about [-1, 1]; times are [B];
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
from ddpm.nn import layers

RESAMPLES = ('conv', 'block')
PADDINGS = ('same', 'symmetric')
EMBEDDING_ORDERS = ('sin_cos', 'cos_sin')
VARIANTS = ('ddpm', 'ddpmpp')
INITS = ('ho', 'torch', 'edm')


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
      lies (`process.Diffusion`).
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

    def attention(size, features, name):
      if size not in attention_resolutions and name != 'mid_attention':
        return None
      return layers.Attention(features, settings, name=name)

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
        name = f'down{level}_block{i}'
        block = layers.ResBlock(features, settings, name=name)
        attend = attention(size, features, f'down{level}_attention{i}')
        self.down.append((block, attend))
        skips.append(features)
      if level < len(channel_multipliers) - 1:
        name = f'down{level}_downsample'
        if resample == 'block':
          layer = layers.ResBlock(
              features, settings, resample='down', name=name
          )
        else:
          layer = layers.downsample(features, settings, name=name)
        self.down.append((layer, None))
        skips.append(features)
        size //= 2

    self.mid = [
        (layers.ResBlock(features, settings, name='mid_block0'),
         attention(size, features, 'mid_attention')),
        (layers.ResBlock(features, settings, name='mid_block1'), None),
    ]  # fmt: skip

    self.up = []
    for level, multiplier in reversed(list(enumerate(channel_multipliers))):
      features = channels * multiplier
      for i in range(num_res_blocks + 1):
        block = layers.ResBlock(features, settings, name=f'up{level}_block{i}')
        attend = None
        if variant == 'ddpm' or i == num_res_blocks:
          attend = attention(size, features, f'up{level}_attention{i}')
        self.up.append((block, attend))
      if level > 0:
        name = f'up{level}_upsample'
        if resample == 'block':
          layer = layers.ResBlock(features, settings, resample='up', name=name)
        else:
          layer = layers.Upsample(features, settings, name=name)
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


def _run(stage, h, temb, dropout_keys):
  """Applies a block, and the attention after it if there is one."""
  for layer in stage:
    if isinstance(layer, layers.ResBlock):
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
  return isinstance(layer, layers.ResBlock) and layer.resample is None


def _build(layer, features, embedding):
  """Builds a layer of the U-Net, and returns its number of channels."""
  shape = (None, None, None, features)
  if isinstance(layer, layers.ResBlock):
    layer.build(shape, embedding)
    return layer.features
  layer.build(shape)
  return features
