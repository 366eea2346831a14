"""Samplers against plain loops, and on data whose denoiser is known."""

from conftest import Network
import numpy as np
import pytest
import tensorflow as tf

from ddpm import diffusion
from ddpm import rng
from ddpm import samplers

BETAS = diffusion.betas_for('linear', 50, beta_start=1e-3, beta_end=0.15)
SHAPE = (2, 2, 1)


def gaussian_network(betas, mean=0.2, std=0.2):
  """The best guess of the noise, for pixels ~ N(mean, std^2)."""
  abar = np.cumprod(1 - betas)

  def network(x, t):
    a = tf.gather(tf.constant(abar, tf.float32), t)[:, None, None, None]
    return tf.sqrt(1 - a) * (x - tf.sqrt(a) * mean) / (a * std**2 + 1 - a)

  return network


def draw(sampler, steps, *, n, variance='fixedlarge', betas=BETAS):
  process = diffusion.Diffusion(betas)
  ts = samplers.timesteps_for(len(betas), steps)
  table = samplers.coefficients(
      process, ts, sampler=sampler, variance=variance
  )

  def function(keys):
    return samplers.sample(
        gaussian_network(betas),
        process,
        ts,
        table,
        keys=keys,
        image_shape=SHAPE,
    )

  keys = rng.fold_in(rng.key(0), tf.range(n))
  return tf.function(function, jit_compile=True)(keys).numpy()


@pytest.mark.parametrize('variance', diffusion.VARIANCES)
def test_ancestral_is_algorithm_2(variance):
  """A loop over T single steps, in float64, with Ho's coefficients."""
  alphas, abar = 1 - BETAS, np.cumprod(1 - BETAS)
  network = gaussian_network(BETAS)
  keys = rng.fold_in(rng.key(0), tf.range(5))
  x = rng.normal(rng.fold_in(keys, 50), SHAPE).numpy().astype(np.float64)
  for t in reversed(range(50)):
    eps = network(x.astype(np.float32), tf.fill([5], t)).numpy()
    x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
    x0 = np.clip(x0, -1, 1)
    before = abar[t - 1] if t else 1.0
    mean = (
        np.sqrt(before) * BETAS[t] / (1 - abar[t]) * x0
        + np.sqrt(alphas[t]) * (1 - before) / (1 - abar[t]) * x
    )
    beta = BETAS[t]
    if variance == 'fixedsmall':
      beta *= (1 - before) / (1 - abar[t])
    z = rng.normal(rng.fold_in(keys, t), SHAPE).numpy() if t else 0
    x = mean + np.sqrt(beta) * z
  expected = np.round(np.clip((x + 1) * 127.5, 0, 255))
  got = draw('ancestral', 50, n=5, variance=variance)
  assert np.abs(got - expected).max() <= 1


def test_ddim_is_equation_12():
  abar = np.cumprod(1 - BETAS)
  ts = samplers.timesteps_for(50, 10)
  network = gaussian_network(BETAS)
  keys = rng.fold_in(rng.key(0), tf.range(5))
  x = rng.normal(rng.fold_in(keys, 50), SHAPE).numpy().astype(np.float64)
  for t, s in zip(ts, [*ts[1:], None]):
    eps = network(x.astype(np.float32), tf.fill([5], t)).numpy()
    x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
    x0 = np.clip(x0, -1, 1)
    eps = (x - np.sqrt(abar[t]) * x0) / np.sqrt(1 - abar[t])
    a = 1.0 if s is None else abar[s]
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
  expected = np.round(np.clip((x + 1) * 127.5, 0, 255))
  assert np.abs(draw('ddim', 10, n=5) - expected).max() <= 1


@pytest.mark.parametrize(
    'sampler, steps, variance',
    [('ancestral', 1000, 'fixedlarge'), ('ancestral', 1000, 'fixedsmall'),
     ('ancestral', 500, 'fixedlarge'), ('ddim', 200, 'fixedlarge')],
)  # fmt: skip
def test_draws_the_distribution(sampler, steps, variance):
  betas = diffusion.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)
  images = draw(sampler, steps, n=4000, variance=variance, betas=betas)
  pixels = images.astype(np.float64) / 127.5 - 1
  assert pixels.mean() == pytest.approx(0.2, abs=0.01)
  assert pixels.std() == pytest.approx(0.2, abs=0.01)


def test_timesteps():
  assert list(samplers.timesteps_for(1000, 4)) == [999, 666, 333, 0]
  assert list(samplers.timesteps_for(5, 5)) == [4, 3, 2, 1, 0]
  assert list(samplers.timesteps_for(1000, 1)) == [999]
  for steps in (0, 1001):
    with pytest.raises(ValueError, match='expected 1 to 1000'):
      samplers.timesteps_for(1000, steps)


def test_an_image_depends_on_its_seed_alone():
  network = Network()
  images = {}
  for batch_size in (1, 3, 8):
    sampler = samplers.Sampler(
        network.model, network.layout, network.diffusion, sampler='ancestral',
        steps=5, variance='fixedlarge', batch_size=batch_size,
        jit_compile=batch_size == 8,
    )  # fmt: skip
    batches = list(sampler(network.params, np.array([7, 0, 2**40, 3])))
    images[batch_size] = np.concatenate(batches).astype(int)
  assert np.abs(images[8][0] - images[8][1]).max() > 10
  for batch_size in (1, 3):
    difference = np.abs(images[batch_size] - images[8])
    assert difference.max() <= 2 and (difference > 1).mean() < 1e-3


def test_a_class_for_each_seed():
  network = Network(num_classes=3)
  sampler = samplers.Sampler(
      network.model, network.layout, network.diffusion, sampler='ddim',
      steps=2, variance='fixedlarge', batch_size=2, jit_compile=False,
  )  # fmt: skip
  assert list(sampler.labels(np.arange(5))) == [0, 1, 2, 0, 1]
  (images,) = sampler(network.params, np.array([4, 5]))
  assert images.shape == (2, 8, 8, 1)
