"""The objects of a run, made from its config."""

import keras
import tensorflow as tf

from ddpm.diffusion import noise_levels
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.nn import unet
from ddpm.runtime import strategy as strategy_lib


def make_model(config):
  """The U-Net of a config, with its initial weights, on the host.

  The weights are a function of the seed, the same on every worker.
  """
  keras.utils.set_random_seed(config.seed % 2**32)
  with tf.device('CPU:0'):
    return unet.UNet(
        image_size=config.data.image_size,
        dtype=config.precision,
        null_class=config.train.label_dropout > 0,
        learned_variance=config.diffusion.variance == 'learned_range',
        remat=config.train.remat,
        **{k: v for k, v in config.model.items() if k != 'compat'},
        **config.model.compat,
    )


def make_strategy(config):
  """The strategy of a config. Make it before TensorFlow does anything else."""
  if config.deterministic:
    tf.config.experimental.enable_op_determinism()
  return strategy_lib.make_strategy(
      config.distribute.strategy,
      virtual_devices=config.distribute.virtual_devices,
  )


def jit_compile(config):
  """Whether to compile with XLA on this machine."""
  if config.jit_compile is not None:
    return config.jit_compile
  kinds = {device.device_type for device in tf.config.list_logical_devices()}
  return not kinds.isdisjoint(('GPU', 'TPU'))


def make_process(config):
  """The diffusion process of a config."""
  process = config.diffusion
  if process.schedule == 'edm':
    return process_lib.EDM(
        sigma_min=config.sample.sigma_min,
        sigma_max=config.sample.sigma_max,
        rho=config.sample.rho,
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
      sigma_min=config.sample.sigma_min,
      sigma_max=config.sample.sigma_max,
      rho=config.sample.rho,
  )


def make_noise_levels(config):
  """How a config chooses noise levels in training."""
  process = config.diffusion
  if process.timesteps == 'lognormal':
    return noise_levels.LogNormal(process.log_sigma_mean, process.log_sigma_std)
  if process.timesteps == 'loss_second_moment':
    return noise_levels.LossSecondMoment(process.num_timesteps)
  return noise_levels.Uniform(process.num_timesteps)
