"""The sampler: seeds, classes, guidance, interpolation, inpainting."""

import numpy as np
import pytest
from support import gaussian_network
from support import GAUSSIAN_SHAPE as SHAPE
from support import Network
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion import solvers
from ddpm.nn.guidance import guided_network
from ddpm.runtime.errors import UserError
from ddpm.sampling import sampler as sampler_lib

LINEAR = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)


def shallow(**kwargs):
  """A network of one resolution, which is traced in half the time."""
  return Network(channel_multipliers=(1,), attention_resolutions=(), **kwargs)


def make_sampler(
    network, sampler='dpmpp_2m', steps=5, eta=0.0, guidance=1.0, **kwargs
):
  spec = solvers.SamplerSpec(sampler, steps, eta=eta, guidance=guidance)
  settings = {'batch_size': 4, 'jit_compile': False} | kwargs
  return sampler_lib.Sampler(
      network.model, network.layout, network.diffusion, spec, **settings
  )


def drawn(sampler, network, *args):
  return np.concatenate(list(sampler(network.params, *args))).astype(int)


def test_an_image_depends_on_its_seed_alone():
  network = shallow()
  images = {}
  for batch_size in (1, 3, 8):
    sampler = make_sampler(
        network, sampler='ancestral', batch_size=batch_size,
        jit_compile=batch_size == 8,
    )  # fmt: skip
    batches = list(sampler(network.params, np.array([7, 0, 2**40, 3])))
    images[batch_size] = np.concatenate(batches).astype(int)
  assert np.abs(images[8][0] - images[8][1]).max() > 10
  for batch_size in (1, 3):
    difference = np.abs(images[batch_size] - images[8])
    assert difference.max() <= 2 and (difference > 1).mean() < 1e-3


def test_the_digest_is_of_all_that_makes_the_table():
  network = shallow()
  first = make_sampler(network).digest
  assert first == make_sampler(network).digest
  network.diffusion = process_lib.Diffusion(
      network.diffusion.betas, spacing=schedules.KarrasSpacing(rho=3.0)
  )
  assert first != make_sampler(network).digest
  assert first != make_sampler(network, eta=0.5).digest
  assert first != make_sampler(network, guidance=2.0).digest


def test_a_class_for_each_seed():
  network = shallow(num_classes=3)
  sampler = make_sampler(network, sampler='ddim', steps=2, batch_size=2)
  assert list(sampler.labels(np.arange(5))) == [0, 1, 2, 0, 1]
  (images,) = sampler(network.params, np.array([4, 5]))
  assert images.shape == (2, 8, 8, 1)
  (same,) = sampler(
      network.params, np.array([4, 5]), np.array([1, 2], np.int32)
  )
  np.testing.assert_array_equal(images, same)
  (other,) = sampler(
      network.params, np.array([4, 5]), np.array([1, 1], np.int32)
  )
  np.testing.assert_array_equal(images[0], other[0])
  assert np.abs(images[1].astype(int) - other[1]).max() > 2


def test_guidance_goes_beyond_the_class():
  """none + s (class - none); the variance is the class's."""
  network = shallow(num_classes=3, null_class=True, learned_variance=True)
  x = tf.random.stateless_normal([2, 8, 8, 1], (0, 0))
  time = tf.constant([3.0, 9.0])

  def ask(labels, guidance):
    bound = guided_network(
        network.model, network.layout, network.params,
        tf.constant(labels), guidance=guidance,
    )  # fmt: skip
    return bound(x, time).numpy()

  given, none = ask([0, 2], 1.0), ask([3, 3], 1.0)
  assert np.abs(given - none).max() > 1e-3
  guided = ask([0, 2], 2.5)
  np.testing.assert_allclose(
      guided[..., :1], (none + 2.5 * (given - none))[..., :1], atol=1e-5
  )
  np.testing.assert_allclose(guided[..., 1:], given[..., 1:], atol=1e-6)
  unguided = ask([0, 2], 0.0)
  np.testing.assert_allclose(unguided[..., :1], none[..., :1], atol=1e-5)


def test_slerp_goes_along_a_great_circle():
  """In the plane of a and b, at its share of the angle between them."""
  a, b = tf.random.stateless_normal([2, 3, 4, 4, 2], (0, 0))
  fractions = tf.constant([0.0, 0.3, 1.0])
  x = sampler_lib.slerp(a, b, fractions).numpy().reshape(3, -1)
  a, b = a.numpy().reshape(3, -1), b.numpy().reshape(3, -1)
  np.testing.assert_allclose(x[0], a[0], atol=1e-6)
  np.testing.assert_allclose(x[2], b[2], atol=1e-6)

  def angle(x, y):
    return np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

  # Shoemake's formula, for points of one length.
  u, v = a[1] / np.linalg.norm(a[1]), b[1] / np.linalg.norm(b[1])
  u, v = (tf.reshape(tf.constant(w), [1, 4, 4, 2]) for w in (u, v))
  w = sampler_lib.slerp(u, v, tf.constant([0.3])).numpy().ravel()
  u, v = u.numpy().ravel(), v.numpy().ravel()
  assert np.linalg.norm(w) == pytest.approx(1, abs=1e-5)
  assert angle(u, w) == pytest.approx(0.3 * angle(u, v), rel=1e-3)
  assert angle(u, w) + angle(w, v) == pytest.approx(angle(u, v), rel=1e-3)


def test_an_interpolation_begins_and_ends_at_the_images_of_its_seeds():
  network = shallow()
  sampler = make_sampler(network)
  assert not sampler.is_noisy
  assert make_sampler(network, sampler='ddim', eta=1.0).is_noisy
  seeds = np.tile(np.array([7, 3]), [5, 1])
  fractions = np.linspace(0, 1, 5, dtype=np.float32)
  images = drawn(sampler, network, seeds, None, fractions)
  ends = drawn(sampler, network, np.array([7, 3]))
  assert np.abs(images[[0, -1]] - ends).max() <= 1
  # No step is as long as the whole way.
  steps = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))
  assert steps.min() > 0
  assert steps.max() < np.abs(ends[0] - ends[1]).mean()


@pytest.mark.parametrize('sampler', solvers.SOLVERS)
def test_pixels_outside_the_mask_stay(sampler):
  network = shallow()
  image = np.random.default_rng(0).integers(0, 256, [8, 8, 1], np.uint8)
  mask = np.zeros([8, 8, 1], bool)
  mask[:, 5:] = True
  inpainted = drawn(
      make_sampler(network, sampler=sampler, init_image=image, mask=mask),
      network,
      np.arange(3),
  )  # fmt: skip
  np.testing.assert_array_equal(
      inpainted[:, :, :5], np.broadcast_to(image[:, :5], [3, 8, 5, 1])
  )
  assert np.abs(inpainted[0] - inpainted[1])[:, 5:].max() > 2
  # What is known on the left has a say on the right.
  free = drawn(make_sampler(network, sampler=sampler), network, np.arange(3))
  assert np.abs(inpainted - free)[:, :, 5:].max() > 2


def test_inpainting_keeps_a_gaussians_distribution():
  """Pixels that do not depend on one another: those that are inpainted have
  the distribution that they would have had."""
  process = process_lib.Diffusion(LINEAR)
  rows = solvers.table(
      process, solvers.steps_for(process, 'ancestral', 500),
      sampler='ancestral',
  )  # fmt: skip
  keys = rng.fold_in(rng.key(0), tf.range(4000))
  mask = np.array([True, False, False, True]).reshape(SHAPE)

  def function():
    return sampler_lib.sample(
        gaussian_network(process), process, rows, keys=keys,
        start=sampler_lib.initial_noise(process, keys, SHAPE),
        constrain=lambda x0: tf.where(mask, pixels.clip(x0), -0.7),
    )[0]  # fmt: skip

  x = tf.function(function, autograph=False)().numpy()
  np.testing.assert_allclose(x[:, ~mask], -0.7, atol=1e-6)
  assert x[:, mask].mean() == pytest.approx(0.2, abs=0.01)
  assert x[:, mask].std() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize('schedule', ['vp', 'edm'])
def test_more_strength_leaves_less_of_the_image(schedule):
  network = shallow()
  if schedule == 'edm':
    network.diffusion = process_lib.EDM()
  image = np.random.default_rng(0).integers(0, 256, [8, 8, 1], np.uint8)
  whole = drawn(make_sampler(network, steps=10), network, np.arange(4))
  distances = []
  for at in (0.1, 0.5, 0.9):
    sampler = make_sampler(network, steps=10, init_image=image, strength=at)
    images = drawn(sampler, network, np.arange(4))
    distances.append(np.abs(images - image).mean())
  assert distances[0] < distances[1] < distances[2]
  sampler = make_sampler(network, steps=10, init_image=image, strength=1.0)
  np.testing.assert_array_equal(drawn(sampler, network, np.arange(4)), whole)


def test_denoising_from_a_level_is_the_closed_form():
  """x_0 noised to half of T and denoised by the probability flow."""
  process = process_lib.Diffusion(LINEAR, prediction='v')
  levels = solvers.steps_for(process, 'ddim', 500, strength=0.5)
  assert levels.t[0] == 499 and levels.t[-1] == 0
  rows = solvers.table(process, levels, sampler='ddim')
  keys = rng.fold_in(rng.key(0), tf.range(50))
  x0 = 0.4
  noise = sampler_lib.initial_noise(process, keys, SHAPE)
  start = levels.alpha[0] * x0 + levels.sigma[0] * noise
  x, _ = sampler_lib.sample(
      gaussian_network(process), process, rows, start=start, keys=keys
  )
  standard = (start - levels.alpha[0] * 0.2) / np.hypot(
      0.2 * levels.alpha[0], levels.sigma[0]
  )
  np.testing.assert_allclose(x, 0.2 + 0.2 * standard, atol=0.01)


@pytest.mark.parametrize('steps', [5, 20])
def test_an_animation_goes_from_noise_to_the_image(steps):
  network = shallow()
  images = drawn(make_sampler(network, steps=steps), network, np.arange(6))
  animation = drawn(
      make_sampler(network, steps=steps, animation=True), network, np.arange(6)
  )
  assert animation.shape == (6, steps + 1, 8, 8, 1)
  np.testing.assert_array_equal(animation[:, -1], images)
  noise = sampler_lib.initial_noise(
      network.diffusion, rng.key(np.arange(6)), (8, 8, 1)
  )
  np.testing.assert_array_equal(animation[:, 0], pixels.to_uint8(noise))


def test_a_long_animation_skips_steps():
  network = shallow()
  network.diffusion = process_lib.Diffusion(LINEAR)
  sampler = make_sampler(network, sampler='ddim', steps=200, animation=True)
  animation = drawn(sampler, network, np.arange(2))
  assert animation.shape == (2, 61, 8, 8, 1)
  images = drawn(
      make_sampler(network, sampler='ddim', steps=200), network, np.arange(2)
  )
  np.testing.assert_array_equal(animation[:, -1], images)


@pytest.mark.parametrize(
    'sampler, value, jit_compile',
    [
        ('ancestral', np.nan, True),
        ('ddim', np.inf, False),
        ('dpmpp_2m', -np.inf, False),
        ('heun', np.nan, False),
    ],
)
def test_an_image_that_is_not_finite_is_refused(sampler, value, jit_compile):
  """Clipping would make it black or white."""
  network = shallow()
  params = network.params.numpy()
  params[-1] = value  # The bias of conv_out.
  draw = make_sampler(network, sampler=sampler, jit_compile=jit_compile)
  message = '^the image of seed 7 has pixels that are not finite, .* use prec'
  with pytest.raises(UserError, match=message):
    list(draw(tf.constant(params), np.array([7, 3])))


def test_the_image_that_is_not_finite_is_named(monkeypatch):
  network = shallow()
  draw = sampler_lib.Sampler.draw

  def fails(self, params, seeds, *args):
    images, finite = draw(self, params, seeds, *args)
    return images, finite & (seeds != 5)

  monkeypatch.setattr(sampler_lib.Sampler, 'draw', fails)
  batches = make_sampler(network)(network.params, np.arange(6))
  assert next(batches).shape == (4, 8, 8, 1)
  with pytest.raises(UserError, match='the image of seed 5 has pixels'):
    next(batches)
