"""Whole trajectories of samplers against diffusers' schedulers.

The same network, here a formula, the same noise, the same timesteps: those
that diffusers chooses. It needs `pip install -e '.[oracle]'`.
"""

import numpy as np
import pytest
import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion import solvers
from ddpm.sampling import sampler as sampler_lib

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

SHAPE = (4, 4, 1)
KEYS = rng.fold_in(rng.key(0), tf.range(3))
BETAS = schedules.betas_for('linear', 1000, beta_start=1e-4, beta_end=0.02)
PREDICTIONS = {'eps': 'epsilon', 'x0': 'sample', 'v': 'v_prediction'}
VARIANCES = {
    'fixedlarge': 'fixed_large',
    'fixedsmall': 'fixed_small',
    'learned_range': 'learned_range',
}


def output_of(x, t, channels):
  """Some network, in NumPy: bounded, and another at each timestep."""
  first = 0.9 * np.sin(2 * x + 0.01 * t) - 0.3 * x / (1 + x**2)
  return np.concatenate([first, np.tanh(x)], -1)[..., :channels]


def noise_at(t):
  """The noise of our step from t, float64 [3, 4, 4, 1]."""
  return rng.normal(rng.fold_in(KEYS, t), SHAPE).numpy().astype(np.float64)


def ours(process, timesteps, *, sampler, clip, **kwargs):
  """The end of our trajectory over some timesteps."""
  if isinstance(process, process_lib.EDM):
    steps = process.steps(timesteps)
  else:
    t = np.asarray(timesteps, np.int64)
    abar = process.alphas_cumprod[t]
    steps = process_lib.Steps(np.sqrt(abar), np.sqrt(1 - abar), t, t)
  rows = solvers.table(process, steps, sampler=sampler, **kwargs)
  channels = 2 if process.variance == 'learned_range' else 1

  def network(x, time):
    output = tf.numpy_function(
        lambda x, time: output_of(x, time[0], channels), [x, time], tf.float32
    )
    return tf.ensure_shape(output, [3, 4, 4, channels])

  def function():
    noise = sampler_lib.initial_noise(process, KEYS, SHAPE)
    return sampler_lib.sample(
        network, process, rows, start=process.prior_sigma * noise, keys=KEYS,
        constrain=pixels.clip if clip else lambda x0: x0,
    )[0]  # fmt: skip

  return tf.function(function, autograph=False)().numpy()


def double(scheduler):
  """Its coefficients in float64, as ours are."""
  abar = torch.cumprod(1 - torch.tensor(BETAS), 0)
  scheduler.betas = torch.tensor(BETAS)
  scheduler.alphas = 1 - scheduler.betas
  scheduler.alphas_cumprod = abar
  return scheduler


def theirs(scheduler, channels=1, scale=1.0, **kwargs):
  """The end of the trajectory of a scheduler, in float64.

  Args:
    scheduler: whose timesteps are set.
    channels: of the network's output.
    scale: of x_T.
    **kwargs: of its steps, functions of the timestep.
  """
  x = torch.tensor(noise_at(1000)) * scale
  for t in scheduler.timesteps:
    inner = scheduler.scale_model_input(x, t)
    output = torch.tensor(output_of(inner.numpy(), float(t), channels))
    settings = {name: value(int(t)) for name, value in kwargs.items()}
    # diffusers has the channels first.
    x = scheduler.step(
        output.movedim(-1, 1), t, x.movedim(-1, 1), **settings
    ).prev_sample.movedim(1, -1)
  return x.numpy()


def check(got, expected):
  assert np.abs(expected).max() > 0.3
  np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    'prediction, steps', [('eps', 1000), ('eps', 50), ('x0', 50), ('v', 50)]
)
@pytest.mark.parametrize('variance', process_lib.VARIANCES)
def test_ancestral_is_ddpm(monkeypatch, prediction, variance, steps):
  process = process_lib.Diffusion(
      BETAS, prediction=prediction, variance=variance
  )
  scheduler = double(
      diffusers.DDPMScheduler(
          prediction_type=PREDICTIONS[prediction],
          variance_type=VARIANCES[variance],
          clip_sample=True,
      )
  )
  scheduler.set_timesteps(steps)
  # Of the step that is under way.
  queue = iter(scheduler.timesteps.tolist())
  monkeypatch.setattr(
      'diffusers.schedulers.scheduling_ddpm.randn_tensor',
      lambda *args, **kwargs: torch.tensor(noise_at(next(queue))).movedim(
          -1, 1
      ),
  )
  channels = 2 if variance == 'learned_range' else 1
  check(
      ours(process, scheduler.timesteps, sampler='ancestral', clip=True),
      theirs(scheduler, channels),
  )


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_ddim(prediction, eta):
  process = process_lib.Diffusion(BETAS, prediction=prediction)
  scheduler = double(
      diffusers.DDIMScheduler(
          prediction_type=PREDICTIONS[prediction], clip_sample=True
      )
  )
  scheduler.set_timesteps(50)
  check(
      ours(process, scheduler.timesteps, sampler='ddim', clip=True, eta=eta),
      theirs(
          scheduler,
          eta=lambda t: eta,
          # With our clip the noise is of the clipped x_0; theirs, if asked.
          use_clipped_model_output=lambda t: True,
          variance_noise=lambda t: torch.tensor(noise_at(t)).movedim(-1, 1),
      ),
  )


@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize(
    'algorithm, eta, steps',
    [
        ('dpmsolver++', 0.0, 10),
        ('dpmsolver++', 0.0, 30),
        ('sde-dpmsolver++', 1.0, 20),
    ],
)
def test_dpmpp_2m(prediction, algorithm, eta, steps):
  process = process_lib.Diffusion(BETAS, prediction=prediction)
  scheduler = diffusers.DPMSolverMultistepScheduler(
      prediction_type=PREDICTIONS[prediction], beta_start=1e-4, beta_end=0.02,
      algorithm_type=algorithm,
  )  # fmt: skip
  double(scheduler).set_timesteps(steps)
  check(
      ours(
          process, scheduler.timesteps, sampler='dpmpp_2m', clip=False, eta=eta
      ),
      theirs(
          scheduler,
          variance_noise=lambda t: torch.tensor(noise_at(t)).movedim(-1, 1),
      ),
  )


@pytest.mark.parametrize('prediction', ['eps', 'v'])
def test_heun(prediction):
  process = process_lib.Diffusion(BETAS, prediction=prediction)
  scheduler = diffusers.HeunDiscreteScheduler(
      prediction_type=PREDICTIONS[prediction], beta_start=1e-4, beta_end=0.02,
      timestep_spacing='linspace',
  )  # fmt: skip
  double(scheduler).set_timesteps(10)
  timesteps = scheduler.timesteps[[0, *range(1, 19, 2)]]
  np.testing.assert_array_equal(timesteps, schedules.timesteps_for(1000, 10))
  # Its x is ours over alpha.
  scale = 1 / np.sqrt(process.alphas_cumprod[999])
  check(
      ours(process, timesteps, sampler='heun', clip=False),
      theirs(scheduler, scale=scale),
  )


@pytest.mark.parametrize(
    'sampler, scheduler',
    [
        ('ddim', diffusers.EDMEulerScheduler),
        ('dpmpp_2m', diffusers.EDMDPMSolverMultistepScheduler),
    ],
)
def test_edm(sampler, scheduler):
  scheduler = scheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
  scheduler.set_timesteps(18)
  check(
      ours(process_lib.EDM(), 18, sampler=sampler, clip=False),
      theirs(scheduler, scale=80.0),
  )


def test_edm_heun_is_algorithm_1():
  """Karras et al. 2022, written again: diffusers has none of it."""
  i = np.arange(18)
  sigmas = (
      80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
  ) ** 7

  def denoised(x, sigma):
    output = output_of(x / np.sqrt(sigma**2 + 0.25), np.log(sigma) / 4, 1)
    skip = 0.25 / (sigma**2 + 0.25)
    return skip * x + sigma * 0.5 / np.sqrt(sigma**2 + 0.25) * output

  x = 80 * noise_at(1000)
  for sigma, after in zip(sigmas, np.append(sigmas[1:], 0.0)):
    slope = (x - denoised(x, sigma)) / sigma
    euler = x + (after - sigma) * slope
    if after:
      slope = (slope + (euler - denoised(euler, after)) / after) / 2
    x = x + (after - sigma) * slope
  check(ours(process_lib.EDM(), 18, sampler='heun', clip=False), x)
