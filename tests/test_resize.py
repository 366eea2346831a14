"""The rule of TensorFlow's and PyTorch's resize, also under XLA."""

import numpy as np
from oracles import weights
import pytest
import tensorflow as tf

from ddpm.metrics.extractors import resize


@pytest.mark.parametrize(
    ('height', 'width', 'size'),
    ((32, 32, 224), (23, 28, 299), (400, 310, 299), (224, 448, 224), (1, 2, 5)),
)
def test_is_bilinear(height, width, size):
  images = weights.random_images(height, width, 0)
  compiled = tf.function(resize.to_rgb, jit_compile=True)
  expected = tf.image.resize(images, [size, size])
  np.testing.assert_allclose(compiled(images, size), expected, atol=1e-3)


def test_a_gray_image_is_one_of_three_equal_channels():
  images = weights.random_images(32, 20, 0)[..., :1]
  np.testing.assert_array_equal(
      resize.to_rgb(images, 50),
      resize.to_rgb(np.repeat(images, 3, axis=3), 50),
  )
