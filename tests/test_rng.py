"""Against the published test vectors of Threefry, and the laws of chance."""

import numpy as np
import pytest
import tensorflow as tf

from ddpm import rng


@pytest.mark.parametrize(
    'key, counter, expected',
    # kat_vectors of Random123, threefry2x32, 20 rounds.
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x1CB996FC, 0xBB002BE7),
        ),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
def test_threefry_gives_the_published_vectors(key, counter, expected):
  words = [tf.constant(w, tf.uint32) for w in (*key, *counter)]
  got = rng._threefry2x32(words[:2], words[2:])
  assert tuple(int(x) for x in got) == expected


def test_key_and_fold_in_take_63_bits():
  large = 2**62 + 5
  keys = [rng.key(5), rng.key(large), rng.fold_in(rng.key(0), large),
          rng.fold_in(rng.key(0), 5)]  # fmt: skip
  assert len({tuple(k.numpy()) for k in keys}) == 4
  assert tuple(rng.key(large).numpy()) == (2**30, 5)


@pytest.mark.parametrize('draw', [rng.uniform, rng.normal])
@pytest.mark.parametrize('shape', [(), (5,), (3, 4, 2)])
def test_same_values_in_any_batch_and_under_xla(draw, shape):
  keys = rng.fold_in(rng.key(3), tf.range(6))

  def function(keys):
    return draw(keys, shape)

  eager = function(keys).numpy()
  assert eager.shape == (6, *shape)
  one = np.stack([function(keys[i]).numpy() for i in range(6)])
  # Bits are equal; a logarithm and a cosine round as they are vectorised.
  tolerance = 0 if draw is rng.uniform else 2e-6
  np.testing.assert_allclose(one, eager, atol=tolerance, rtol=0)
  graph = tf.function(function)(keys).numpy()
  compiled = tf.function(function, jit_compile=True)(keys).numpy()
  np.testing.assert_allclose(graph, eager, atol=tolerance, rtol=0)
  np.testing.assert_allclose(compiled, eager, atol=tolerance, rtol=0)


def test_uniform_is_uniform():
  x = rng.uniform(rng.key(1), (200_000,)).numpy()
  assert x.min() >= 0 and x.max() < 1
  counts, _ = np.histogram(x, bins=20, range=(0, 1))
  # Chi-squared with 19 degrees of freedom is above 43.8 once in a thousand.
  assert np.sum((counts - 10_000) ** 2 / 10_000) < 43.8


def test_normal_is_normal():
  x = rng.normal(rng.fold_in(rng.key(1), tf.range(100)), (2000,)).numpy()
  flat = x.ravel().astype(np.float64)
  assert abs(flat.mean()) < 0.01
  assert abs(flat.var() - 1) < 0.02
  assert abs((flat**3).mean()) < 0.03
  assert abs((flat**4).mean() - 3) < 0.08
  # Neighbouring keys, and neighbouring values, know nothing of each other.
  assert abs(np.mean(x[1:] * x[:-1])) < 0.01
  assert abs(np.mean(x[:, 1:] * x[:, :-1])) < 0.01
