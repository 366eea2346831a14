"""Adam against NumPy and Keras; rates, clip and loss scale by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ddpm.optim import adam


def test_adam_agrees_with_the_paper_and_with_keras():
  rng = np.random.default_rng(0)
  params = rng.normal(size=7).astype(np.float32)
  variable = keras.Variable(params)
  optimizer = adam.Adam(adam.LearningRate(1e-2), epsilon=1e-12)
  theirs = keras.optimizers.Adam(1e-2, epsilon=1e-12)
  ours = tf.constant(params), tf.zeros(7), tf.zeros(7)
  x, m, v = params.astype(np.float64), np.zeros(7), np.zeros(7)
  for step in range(20):
    gradient = rng.normal(size=7).astype(np.float32)
    ours = optimizer.update(*ours, gradient, tf.constant(step))
    theirs.apply([tf.constant(gradient)], [variable])
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient.astype(np.float64) ** 2
    t = step + 1
    x -= 1e-2 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-12)
  np.testing.assert_allclose(ours[0], x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(ours[0], variable.numpy(), rtol=1e-5, atol=1e-6)


def test_epsilon_stands_outside_the_corrected_root():
  zero = tf.zeros(1)
  params, _, _ = adam.Adam(adam.LearningRate(1.0), epsilon=1e-8).update(
      zero, zero, zero, tf.constant([1e-8]), tf.constant(0)
  )
  # m_hat = g and sqrt(v_hat) = g, so the step is g / (g + epsilon).
  assert float(params[0]) == pytest.approx(-0.5, rel=1e-3)


@pytest.mark.parametrize(
    'decay, expected',
    [
        ('constant', [0, 0.5, 1, 1, 1]),
        ('linear', [0, 0.45, 0.8, 0.5, 0]),
        ('cosine', [0, 0.5 * 0.97553, 0.90451, 0.5, 0]),
        ('inverse_sqrt', [0, 0.5, 1, 1, 1]),
    ],
)
def test_learning_rate(decay, expected):
  rate = adam.LearningRate(1.0, warmup_steps=20, decay=decay, decay_steps=100)
  rates = [rate(tf.constant(n, tf.int64)) for n in (0, 10, 20, 50, 100)]
  np.testing.assert_allclose(rates, expected, atol=1e-5)


def test_inverse_sqrt_falls_from_decay_steps_on():
  steps = np.array([0, 50, 100, 399, 400, 401, 10_000, 10**8])
  rate = adam.LearningRate(
      1e-2, warmup_steps=100, decay='inverse_sqrt', decay_steps=400
  )
  rates = [rate(tf.constant(step)) for step in steps]
  expected = (
      1e-2 * np.minimum(steps / 100, 1) / np.sqrt(np.maximum(steps / 400, 1))
  )
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_clip():
  gradient = tf.constant([3.0, 4.0])
  for max_norm, expected in ((1.0, [0.6, 0.8]), (10.0, [3, 4]), (0.0, [3, 4])):
    clipped, norm = adam.Clip(max_norm).total(gradient)
    np.testing.assert_allclose(clipped, expected, rtol=1e-6)
    assert float(norm) == 5
    np.testing.assert_array_equal(
        adam.Clip(max_norm).share(gradient, 4), gradient
    )


def test_clip_per_replica():
  """Each of 4 replicas clips its share to a quarter; the sum is not clipped."""
  clip = adam.Clip(1.0, 'per_replica')
  gradient = tf.constant([3.0, 4.0])
  np.testing.assert_allclose(clip.share(gradient, 4), [0.15, 0.2], rtol=1e-6)
  total, norm = clip.total(gradient)
  np.testing.assert_array_equal(total, gradient)
  assert float(norm) == 5


def test_loss_scale():
  def after(scale, good_steps, finite, dynamic=True):
    scale, good_steps = adam.LossScale(dynamic).update(
        tf.constant(scale), tf.constant(good_steps), tf.constant(finite)
    )
    return float(scale), int(good_steps)

  assert after(8.0, 5, True) == (8.0, 6)
  assert after(8.0, 5, False) == (4.0, 0)
  assert after(8.0, 1999, True) == (16.0, 0)
  assert after(1.0, 0, False) == (1.0, 0)
  assert after(1.0, 0, False, dynamic=False) == (1.0, 0)
  assert adam.LossScale(True).initial == 2**15
  assert adam.LossScale(False).initial == 1


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: adam.LearningRate(-1.0), 'learning_rate is -1.0, expected'),
        (lambda: adam.LearningRate(1, decay='step'), "decay is 'step', exp"),
        (lambda: adam.LearningRate(1, decay_steps=0), 'decay_steps is 0, exp'),
        (lambda: adam.Clip(float('nan')), 'clip_norm is nan, expected'),
        (lambda: adam.Clip(1.0, 'value'), "clip is 'value', expected one of"),
        (lambda: adam.Adam(None, beta1=1.0), 'beta1 is 1.0, expected'),
        (lambda: adam.Adam(None, epsilon=0.0), 'epsilon is 0.0, expected'),
    ],
)
def test_refuses(make, message):
  with pytest.raises(ValueError, match=message):
    make()
