"""The networks by name; that of digits and the user's own here."""

import hashlib

import numpy as np
import pytest
from support import ROOT
import tensorflow as tf

from ddpm.data import catalog
from ddpm.metrics import extractors
from ddpm.metrics.extractors import mnist
from ddpm.runtime.errors import UserError


def load(name, shape=(28, 28, 1)):
  return extractors.load(name, inception_weights=None, image_shape=shape)


def test_mnist_knows_digits():
  source = catalog.load('mnist5k', data_dir='', split='train', image_size=28)
  digits = load('mnist')
  features, probabilities = digits.function(
      digits.weights, tf.constant(source.images[::5])
  )
  assert features.shape == [1000, 128]
  right = probabilities.numpy().argmax(axis=1) == source.labels[::5]
  # They are of its training set. Of the test set it knows 99.55 %.
  assert right.mean() > 0.99
  assert digits.labels


def test_mnist_is_the_file_that_shipped(monkeypatch):
  file = ROOT / 'ddpm' / 'metrics' / 'extractors' / 'mnist.npy'
  assert file.stat().st_size < 2e6
  assert hashlib.sha256(file.read_bytes()).hexdigest() == load('mnist').sha256
  monkeypatch.setattr(mnist, 'SHA256', '0' * 64)
  with pytest.raises(UserError, match=r'mnist.npy has SHA-256 .*install ddpm'):
    load('mnist')


class Network(tf.Module):
  """Sums of the rows of pixels, and perhaps classes."""

  def __init__(self, classes):
    self._scale = tf.Variable(2.0)
    self._classes = classes

  @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8)])
  def __call__(self, images):
    rows = tf.reduce_sum(tf.cast(images, tf.float32), axis=[2, 3])
    outputs = {'features': self._scale * rows}
    if self._classes:
      outputs['probabilities'] = tf.nn.softmax(rows)
    return outputs


@pytest.mark.parametrize('classes', [False, True])
def test_savedmodel(tmp_path, classes):
  network = Network(classes)
  tf.saved_model.save(network, tmp_path, signatures=network.__call__)
  own = load(f'savedmodel:{tmp_path}', (8, 8, 3))
  images = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3], np.uint8)
  features, probabilities = own.function(own.weights, tf.constant(images))
  expected = images.sum(axis=(2, 3), dtype=np.float32)
  np.testing.assert_array_equal(features, 2 * expected)
  assert own.has_probabilities == classes == (probabilities is not None)
  network._scale.assign(3.0)
  tf.saved_model.save(network, tmp_path / 'other', signatures=network.__call__)
  assert load(f'savedmodel:{tmp_path}/other', (8, 8, 3)).sha256 != own.sha256

  with pytest.raises(UserError, match=r'takes \(None, 8, 8, 3\), but the im'):
    load(f'savedmodel:{tmp_path}', (9, 8, 3))


def test_refuses(tmp_path):
  with pytest.raises(UserError, match="features is 'vgg', expected one of"):
    load('vgg')
  with pytest.raises(UserError, match=r'mnist, which takes .* 28 x 1, but'):
    load('mnist', (32, 32, 3))
  with pytest.raises(UserError, match='is not a SavedModel with the signature'):
    load(f'savedmodel:{tmp_path}')
