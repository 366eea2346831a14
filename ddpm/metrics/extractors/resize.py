"""Resizes images to the input size of ImageNet networks.

`tf.image.resize` has the same rule, but not under XLA: TensorFlow 2.21
compiles it to a different one if the size grows by an odd integer factor
(32 to 224).
"""

import numpy as np
import tensorflow as tf

RULE = 'bilinear between pixel centers, without antialiasing or crop'


def to_rgb(images, size):
  """Resizes like torch.nn.functional.interpolate with align_corners=False.

  Args:
    images: [B, H, W, C], C is 3, or 1, which is repeated.
    size: height and width of the result.

  Returns:
    float32 [B, size, size, 3], in the units of the images.
  """
  x = tf.cast(images, tf.float32)
  for axis in (1, 2):
    last = images.shape[axis] - 1
    # Pixel centers in source pixels, in float32 like PyTorch and TensorFlow.
    scale = np.float32((last + 1) / size)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale
    position = np.clip(position - np.float32(0.5), 0, last)
    low = np.floor(position).astype(np.int32)
    high = np.minimum(low + 1, last)
    # Broadcasts against the dimensions after `axis`.
    weight = np.float32(position - low).reshape([-1] + [1] * (3 - axis))
    x = (
        tf.gather(x, low, axis=axis) * (1 - weight)
        + tf.gather(x, high, axis=axis) * weight
    )
  return tf.broadcast_to(x, [tf.shape(x)[0], size, size, 3])
