"""The Inception network for FID and the Inception score.

This is the Inception-v3 that TensorFlow published on 2015-12-05, with 1008
classes, as run by pytorch-fid (Heusel et al. 2017, ported by Seitzer). Layers
have the names of pytorch-fid's weights. It differs from torchvision's as noted
in `pytorch_fid/inception.py`: average pooling excludes the padding, and the
last block uses max pooling instead.

The last layer has no bias: the Inception score omits it, both in the authors'
`inception_score/model.py` (Salimans et al. 2016) and in torch-fidelity
('logits_unbiased').
"""

import hashlib
import os

import keras
import tensorflow as tf

from ddpm.metrics.extractors import resize
from ddpm.metrics.extractors import torch_file
from ddpm.metrics.extractors.base import check_channels
from ddpm.metrics.extractors.base import check_sha256
from ddpm.metrics.extractors.base import Extractor
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError

layers = keras.layers

# Where pytorch-fid caches them.
DEFAULT_WEIGHTS = (
    '~/.cache/torch/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth'
)
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
_URL = (
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
    'pt_inception-2015-12-05-6726825d.pth'
)


def extractor(path, image_shape):
  """Returns the `Extractor` for a file of pytorch-fid's weights.

  Args:
    path: the file, in which '~' is expanded; None for DEFAULT_WEIGHTS.
    image_shape: (H, W, C) of the images; any size, 1 or 3 channels.

  Raises:
    UserError: the file is missing or has the wrong hash, or the number of
      channels is not supported.
  """
  check_channels('inception', image_shape)
  path = os.path.expanduser(path or DEFAULT_WEIGHTS)
  fix = f'download {_URL} and pass it as inception_weights'
  try:
    with open(path, 'rb') as f:
      sha256 = hashlib.file_digest(f, 'sha256').hexdigest()
  except OSError as e:
    raise UserError(
        f'the weights of the extractor inception cannot be read: {path}:'
        f' {reason(e)}; {fix}'
    ) from e
  check_sha256(path, sha256, SHA256, fix=fix)
  return from_state_dict(torch_file.read(path), sha256)


def from_state_dict(state, sha256):
  """Returns the `Extractor` for weights with pytorch-fid's names.

  Args:
    state: dict of NumPy arrays, from `torch_file.read`.
    sha256: hash of the weights file.
  """
  model = network()

  def function(weights, images):
    x = resize.to_rgb(images, 299) / 127.5 - 1.0
    (features, logits), _ = model.stateless_call([], weights, x)
    return features, tf.nn.softmax(logits)

  return Extractor(
      name='inception',
      sha256=sha256,
      resize=f'to 299 x 299, {resize.RULE}',
      weights=torch_file.keras_weights(model, state),
      function=function,
  )


def network():
  """[B, 299, 299, 3] in [-1, 1] -> features [B, 2048], logits [B, 1008]."""
  x = images = keras.Input((299, 299, 3))
  x = _conv(x, 'Conv2d_1a_3x3', 32, 3, strides=2, padding='valid')
  x = _conv(x, 'Conv2d_2a_3x3', 32, 3, padding='valid')
  x = _conv(x, 'Conv2d_2b_3x3', 64, 3)
  x = layers.MaxPool2D(3, strides=2)(x)  # [B, 73, 73, 64]
  x = _conv(x, 'Conv2d_3b_1x1', 80, 1)
  x = _conv(x, 'Conv2d_4a_3x3', 192, 3, padding='valid')
  x = layers.MaxPool2D(3, strides=2)(x)  # [B, 35, 35, 192]
  x = _block_a(x, 'Mixed_5b', 32)
  x = _block_a(x, 'Mixed_5c', 64)
  x = _block_a(x, 'Mixed_5d', 64)
  x = _block_b(x, 'Mixed_6a')  # [B, 17, 17, 768]
  x = _block_c(x, 'Mixed_6b', 128)
  x = _block_c(x, 'Mixed_6c', 160)
  x = _block_c(x, 'Mixed_6d', 160)
  x = _block_c(x, 'Mixed_6e', 192)
  x = _block_d(x, 'Mixed_7a')  # [B, 8, 8, 1280]
  x = _block_e(x, 'Mixed_7b', layers.AveragePooling2D)
  x = _block_e(x, 'Mixed_7c', layers.MaxPool2D)
  features = layers.GlobalAveragePooling2D()(x)
  logits = layers.Dense(1008, use_bias=False, name='fc')(features)
  model = keras.Model(images, [features, logits])
  # Puts all weights in one list and makes BatchNorm use its moving averages.
  model.trainable = False
  return model


def _block_a(x, name, pool_features):
  """Figure 5 of Szegedy et al. 2015, "Rethinking", with one 5 x 5."""
  a = _conv(x, f'{name}.branch1x1', 64, 1)
  b = _conv(x, f'{name}.branch5x5_1', 48, 1)
  b = _conv(b, f'{name}.branch5x5_2', 64, 5)
  c = _conv(x, f'{name}.branch3x3dbl_1', 64, 1)
  c = _conv(c, f'{name}.branch3x3dbl_2', 96, 3)
  c = _conv(c, f'{name}.branch3x3dbl_3', 96, 3)
  d = _pool3(x, layers.AveragePooling2D)
  d = _conv(d, f'{name}.branch_pool', pool_features, 1)
  return layers.Concatenate()([a, b, c, d])


def _block_b(x, name):
  """Halves the resolution: 35 to 17."""
  a = _conv(x, f'{name}.branch3x3', 384, 3, strides=2, padding='valid')
  b = _conv(x, f'{name}.branch3x3dbl_1', 64, 1)
  b = _conv(b, f'{name}.branch3x3dbl_2', 96, 3)
  b = _conv(b, f'{name}.branch3x3dbl_3', 96, 3, strides=2, padding='valid')
  c = layers.MaxPool2D(3, strides=2)(x)
  return layers.Concatenate()([a, b, c])


def _block_c(x, name, features):
  """Figure 6 there: 7 x 7 as 1 x 7 and 7 x 1."""
  a = _conv(x, f'{name}.branch1x1', 192, 1)
  b = _conv(x, f'{name}.branch7x7_1', features, 1)
  b = _conv(b, f'{name}.branch7x7_2', features, (1, 7))
  b = _conv(b, f'{name}.branch7x7_3', 192, (7, 1))
  c = _conv(x, f'{name}.branch7x7dbl_1', features, 1)
  c = _conv(c, f'{name}.branch7x7dbl_2', features, (7, 1))
  c = _conv(c, f'{name}.branch7x7dbl_3', features, (1, 7))
  c = _conv(c, f'{name}.branch7x7dbl_4', features, (7, 1))
  c = _conv(c, f'{name}.branch7x7dbl_5', 192, (1, 7))
  d = _conv(_pool3(x, layers.AveragePooling2D), f'{name}.branch_pool', 192, 1)
  return layers.Concatenate()([a, b, c, d])


def _block_d(x, name):
  """Halves the resolution: 17 to 8."""
  a = _conv(x, f'{name}.branch3x3_1', 192, 1)
  a = _conv(a, f'{name}.branch3x3_2', 320, 3, strides=2, padding='valid')
  b = _conv(x, f'{name}.branch7x7x3_1', 192, 1)
  b = _conv(b, f'{name}.branch7x7x3_2', 192, (1, 7))
  b = _conv(b, f'{name}.branch7x7x3_3', 192, (7, 1))
  b = _conv(b, f'{name}.branch7x7x3_4', 192, 3, strides=2, padding='valid')
  c = layers.MaxPool2D(3, strides=2)(x)
  return layers.Concatenate()([a, b, c])


def _block_e(x, name, pool):
  """Figure 7 there: 3 x 3 as 1 x 3 and 3 x 1 in parallel."""
  a = _conv(x, f'{name}.branch1x1', 320, 1)
  b = _conv(x, f'{name}.branch3x3_1', 384, 1)
  b1 = _conv(b, f'{name}.branch3x3_2a', 384, (1, 3))
  b2 = _conv(b, f'{name}.branch3x3_2b', 384, (3, 1))
  c = _conv(x, f'{name}.branch3x3dbl_1', 448, 1)
  c = _conv(c, f'{name}.branch3x3dbl_2', 384, 3)
  c1 = _conv(c, f'{name}.branch3x3dbl_3a', 384, (1, 3))
  c2 = _conv(c, f'{name}.branch3x3dbl_3b', 384, (3, 1))
  d = _conv(_pool3(x, pool), f'{name}.branch_pool', 192, 1)
  return layers.Concatenate()([a, b1, b2, c1, c2, d])


def _pool3(x, pool):
  # TensorFlow's average pooling excludes the padding, as needed here.
  return pool(3, strides=1, padding='same')(x)


def _conv(x, name, features, size, padding='same', **kwargs):
  x = layers.Conv2D(
      features,
      size,
      padding=padding,
      use_bias=False,
      name=f'{name}.conv',
      **kwargs,
  )(x)
  x = layers.BatchNormalization(epsilon=1e-3, name=f'{name}.bn')(x)
  return layers.ReLU()(x)
