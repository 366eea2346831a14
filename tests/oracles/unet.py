"""The U-Net, written again in NumPy."""

import numpy as np


class UNet:
  """A U-Net for one 8 x 8 configuration, written again in NumPy.

  Args:
    network: `support.Network`.
    **kwargs: what it has beside Ho's, named as in `UNet`.
  """

  def __init__(self, network, **kwargs):
    weights = network.layout.split(network.params)
    names = [v.path for v in network.model.trainable_variables]
    self.w = {
        name: weight.numpy()
        for name, weight in zip(names, weights)
    }
    self.epsilon = kwargs.get('norm_epsilon', 1e-6)
    self.scale_shift = kwargs.get('scale_shift_norm', False)
    self.symmetric = kwargs.get('downsample_padding') == 'symmetric'
    self.blocks_resample = kwargs.get('resample') == 'block'
    self.cos_first = kwargs.get('embedding_order') == 'cos_sin'
    self.shift = kwargs.get('embedding_shift', 1)
    self.ddpmpp = kwargs.get('variant') == 'ddpmpp'
    self.classes = kwargs.get('num_classes', 0)

  def silu(self, x):
    return x / (1 + np.exp(-x))

  def dense(self, x, name):
    return x @ self.w[name + '/kernel'] + self.w[name + '/bias']

  def norm(self, x, name, groups=4):
    b, h, w, c = x.shape
    g = x.reshape(b, h * w, groups, c // groups)
    mean = g.mean(axis=(1, 3), keepdims=True)
    var = g.var(axis=(1, 3), keepdims=True)
    g = ((g - mean) / np.sqrt(var + self.epsilon)).reshape(x.shape)
    return g * self.w[name + '/gamma'] + self.w[name + '/beta']

  def conv(self, x, name, stride=1):
    kernel = self.w[name + '/kernel']
    h, w = x.shape[1:3]
    # TensorFlow's SAME: one pixel on each side, or (0, 1) with stride 2.
    pad = (1, 1) if stride == 1 or self.symmetric else (0, 1)
    x = np.pad(x, [(0, 0), pad, pad, (0, 0)])
    out = sum(
        x[:, i : i + h : stride, j : j + w : stride] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    return out + self.w[name + '/bias']

  def sum(self, x, h):
    return (x + h) * (np.sqrt(0.5) if self.ddpmpp else 1)

  def block(self, x, temb, name, resample=lambda x: x):
    h = resample(self.silu(self.norm(x, name + '/norm1')))
    h, x = self.conv(h, name + '/conv1'), resample(x)
    time = self.dense(self.silu(temb), name + '/time_dense')[:, None, None]
    if self.scale_shift:
      scale, shift = np.split(time, 2, axis=-1)
      h = self.norm(h, name + '/norm2') * (1 + scale) + shift
    else:
      h = self.norm(h + time, name + '/norm2')
    h = self.conv(self.silu(h), name + '/conv2')
    if name + '/skip/kernel' in self.w:
      x = self.dense(x, name + '/skip')
    return self.sum(x, h)

  def attention(self, x, name):
    if name + '/query/kernel' not in self.w:
      return x
    b, h, w, c = x.shape
    y = self.norm(x, name + '/norm').reshape(b, h * w, c)
    q, k, v = [self.dense(y, f'{name}/{n}') for n in ('query', 'key', 'value')]
    logits = q @ k.swapaxes(1, 2) / np.sqrt(c)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = self.dense(weights @ v, name + '/out').reshape(x.shape)
    return self.sum(x, y)

  def embed(self, t, labels):
    freqs = 10000.0 ** (-np.arange(4) / (4 - self.shift))
    waves = [np.sin(t[:, None] * freqs), np.cos(t[:, None] * freqs)]
    temb = np.concatenate(waves[::-1] if self.cos_first else waves, axis=1)
    if self.ddpmpp and self.classes:
      one_hot = np.eye(self.classes + 1)[labels][:, : self.classes]
      temb += self.dense(one_hot * np.sqrt(self.classes), 'class_embedding')
    temb = self.dense(self.silu(self.dense(temb, 'time_dense1')), 'time_dense2')
    if self.classes and not self.ddpmpp:
      temb += self.w['class_embedding/embeddings'][labels]
    return temb

  def __call__(self, x, t, labels=None):
    temb = self.embed(t, labels)
    h0 = self.conv(x, 'conv_in')
    h1 = self.block(h0, temb, 'down0_block0')
    if self.blocks_resample:
      b, h, w, _ = h1.shape
      h2 = self.block(
          h1, temb, 'down0_downsample',
          lambda x: x.reshape(b, h // 2, 2, w // 2, 2, -1).mean((2, 4)),
      )  # fmt: skip
    else:
      h2 = self.conv(h1, 'down0_downsample', stride=2)
    h3 = self.attention(self.block(h2, temb, 'down1_block0'),
                        'down1_attention0')  # fmt: skip
    h = self.block(h3, temb, 'mid_block0')
    h = self.block(self.attention(h, 'mid_attention'), temb, 'mid_block1')
    for i, skip in enumerate((h3, h2)):
      h = self.block(np.concatenate([h, skip], -1), temb, f'up1_block{i}')
      h = self.attention(h, f'up1_attention{i}')

    def double(x):
      return x.repeat(2, axis=1).repeat(2, axis=2)

    if self.blocks_resample:
      h = self.block(h, temb, 'up1_upsample', double)
    else:
      h = self.conv(double(h), 'up1_upsample/conv')
    for i, skip in enumerate((h1, h0)):
      h = self.block(np.concatenate([h, skip], -1), temb, f'up0_block{i}')
    return self.conv(self.silu(self.norm(h, 'norm_out')), 'conv_out')
