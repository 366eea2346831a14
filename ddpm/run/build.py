"""The objects of a run, made from its config.

Each object checks its own arguments and raises ValueError. The message begins
with the argument's name, which is the setting's, so that `config.validate` only
puts the setting's group before it.
"""

import keras
import tensorflow as tf

from ddpm.diffusion import losses
from ddpm.diffusion import noise_levels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.diffusion import solvers
from ddpm.nn import unet
from ddpm.optim import adam
from ddpm.optim import ema
from ddpm.runtime import accelerators
from ddpm.runtime import cluster
from ddpm.runtime import devices
from ddpm.runtime import precision
from ddpm.runtime import strategy as strategy_lib


def image_size(config):
  """Height and width of a config's images."""
  size = config.data.image_size
  pair = size if isinstance(size, (tuple, list)) else (size, size)
  if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
    raise ValueError(
        f'image_size is {size!r}, expected a number of pixels, or (height,'
        ' width)'
    )
  return tuple(pair)


def make_model(config):
  """The U-Net of a config, with its initial weights, on the host.

  The weights are a function of the seed, the same on every worker. TensorFlow
  is set to the config's precision, for the whole process.
  """
  keras.utils.set_random_seed(config.seed % 2**32)
  with tf.device('CPU:0'):
    return unet.UNet(
        image_size=image_size(config),
        dtype=precision.use(config.precision),
        null_class=config.train.label_dropout > 0,
        learned_variance=config.diffusion.variance == 'learned_range',
        remat=config.train.remat,
        **{k: v for k, v in config.model.items() if k != 'compat'},
        **config.model.compat,
    )


def data_settings(config):
  """How a config reads data: arguments of `data.catalog.load`."""
  data = config.data
  return {
      'image_size': image_size(config),
      'channels': config.model.image_channels,
      'data_dir': data.data_dir,
      'resize': data.resize,
      'labels': data.labels,
      'image_key': data.image_key,
      'label_key': data.label_key,
      'on_error': data.on_error,
  }


def make_strategy(config):
  """The strategy of a config. Make it before TensorFlow does anything else."""
  if config.deterministic:
    tf.config.experimental.enable_op_determinism()
  name, number = config.distribute.strategy, config.distribute.virtual_devices
  if not number and name != 'one_device':
    accelerators.check_gpus('--config.distribute.strategy=one_device')
  if config.distribute.memory_growth:
    accelerators.grow_memory()
  cluster.join_slurm()
  machine = devices.this_machine(config.jit_compile)
  if number:
    choice = devices.split(machine, number)
  elif name == 'one_device' or config.optimizer.clip == 'per_replica':
    # Clipping by replica gives other results on another number of devices.
    choice = devices.one_device(machine)
  else:
    choice = devices.for_training(
        machine,
        config.train.batch_size,
        accumulation_steps=config.train.accumulation_steps,
    )
  return strategy_lib.make_strategy(name, choice)


def jit_compile(config, strategy):
  """Whether to compile with XLA for a strategy's devices."""
  if config.jit_compile is not None:
    return config.jit_compile
  return devices.pays_to_compile(strategy)


def make_process(config):
  """The diffusion process of a config."""
  process = config.diffusion
  names = [*schedules.SCHEDULES, 'edm']
  if process.schedule not in names:
    raise ValueError(
        f'schedule is {process.schedule!r}, expected one of: {", ".join(names)}'
    )
  if (process.schedule == 'edm') != (process.prediction == 'edm'):
    raise ValueError(
        f'prediction is {process.prediction!r} and schedule'
        f' {process.schedule!r}: the prediction edm and the schedule edm need'
        ' each other'
    )
  if process.schedule == 'edm':
    return process_lib.EDM(
        spacing=make_spacing(config),
        sigma_data=process.sigma_data,
        variance=process.variance,
        num_timesteps=process.num_timesteps,
    )
  betas = schedules.betas_for(
      process.schedule,
      process.num_timesteps,
      beta_start=process.beta_start,
      beta_end=process.beta_end,
  )
  return process_lib.Diffusion(
      betas,
      prediction=process.prediction,
      variance=process.variance,
      rescale_timesteps=process.rescale_timesteps,
      spacing=make_spacing(config),
  )


def make_spacing(config):
  """The spacing of the steps of a config's second-order samplers."""
  return schedules.KarrasSpacing(
      config.sample.sigma_min, config.sample.sigma_max, config.sample.rho
  )


def make_loss(config):
  """The training loss of a config."""
  return losses.Loss(
      make_process(config),
      loss=config.diffusion.loss,
      min_snr_gamma=config.diffusion.min_snr_gamma,
  )


def make_noise_levels(config):
  """How a config chooses noise levels in training."""
  process, name = config.diffusion, config.diffusion.timesteps
  if name not in noise_levels.NOISE_LEVELS:
    names = ', '.join(noise_levels.NOISE_LEVELS)
    raise ValueError(f'timesteps is {name!r}, expected one of: {names}')
  if (name == 'lognormal') != (process.schedule == 'edm'):
    raise ValueError(
        f'timesteps is {name!r} and schedule {process.schedule!r}: lognormal'
        ' timesteps and the schedule edm need each other'
    )
  if name == 'lognormal':
    return noise_levels.LogNormal(process.log_sigma_mean, process.log_sigma_std)
  return noise_levels.NOISE_LEVELS[name](process.num_timesteps)


def make_optimizer(config):
  """Adam, with the learning rate of a config."""
  optimizer = config.optimizer
  return adam.Adam(
      adam.LearningRate(
          optimizer.learning_rate,
          warmup_steps=optimizer.warmup_steps,
          decay=optimizer.decay,
          decay_steps=optimizer.decay_steps,
      ),
      beta1=optimizer.beta1,
      beta2=optimizer.beta2,
      epsilon=optimizer.epsilon,
  )


def make_clip(config):
  """The gradient clipping of a config."""
  return adam.Clip(config.optimizer.clip_norm, config.optimizer.clip)


def make_loss_scale(config):
  """The loss scale of a config's precision."""
  return adam.LossScale(dynamic=config.precision == 'mixed_float16')


def make_emas(config):
  """The EMAs that a config tracks."""
  return ema.EMAs(
      config.ema.decays, config.ema.power_stds, config.ema.rampup_ratio
  )


def make_sampler_spec(
    config, sampler=None, *, steps=None, eta=None, guidance=1.0
):
  """How a config's model is sampled.

  Args:
    config: of the run.
    sampler: a name in `solvers.SOLVERS`; None for the config's.
    steps: None for the config's, or another sampler's default.
    eta: None for the config's; for another sampler 0.
    guidance: scale of classifier-free guidance; 1 for none.

  Returns:
    `solvers.SamplerSpec`.

  Raises:
    ValueError: an argument out of range, or not supported by the model.
  """
  num_timesteps = config.diffusion.num_timesteps
  if sampler in (None, config.sample.sampler):
    sampler = config.sample.sampler
    default_steps, default_eta = config.sample.steps, config.sample.eta
  else:
    default_steps = solvers.default_steps(sampler, num_timesteps)
    default_eta = 0.0
  spec = solvers.SamplerSpec(
      sampler,
      default_steps if steps is None else steps,
      eta=default_eta if eta is None else eta,
      guidance=guidance,
  )
  if spec.steps > num_timesteps:
    raise ValueError(
        f'steps is {spec.steps}, expected at most {num_timesteps}, the'
        " model's diffusion.num_timesteps"
    )
  if guidance != 1.0 and not config.train.label_dropout:
    raise ValueError(
        f'guidance is {guidance}, which needs a model trained with and without'
        ' its classes: model.num_classes, and train.label_dropout=0.1, for'
        ' example'
    )
  return spec
