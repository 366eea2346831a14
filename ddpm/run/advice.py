"""What a valid config probably does not mean to do."""

from ddpm.nn import unet
from ddpm.run import build

# A schedule that ends at more than this signal-to-noise ratio, a signal of 3 %,
# starts its samplers from what the network has not seen. Ho's ends at 4e-5.
_MOST_SIGNAL = 1e-3
# A share of the initial weights in an EMA that can be seen in its samples.
_MOST_INITIAL = 0.1


def advice(config):
  """Looks for settings that work, but hardly as they are meant.

  Args:
    config: a valid config.

  Returns:
    List of sentences, without a full stop.
  """
  return [
      *_on_learning_rate(config),
      *_on_emas(config),
      *_on_schedule(config),
      *_on_attention(config),
  ]


def _on_learning_rate(config):
  optimizer, num_steps = config.optimizer, config.train.num_steps
  ends_at_zero = optimizer.decay in ('cosine', 'linear')
  if ends_at_zero and optimizer.decay_steps < num_steps:
    yield (
        f'the learning rate is 0 from step {optimizer.decay_steps:,}'
        ' (optimizer.decay_steps) on, but training goes on to step'
        f' {num_steps:,} (train.num_steps): use'
        f' optimizer.decay_steps={num_steps}, in a new workdir'
    )
  if optimizer.warmup_steps > num_steps:
    yield (
        f'the learning rate rises for {optimizer.warmup_steps:,} steps'
        f' (optimizer.warmup_steps), but training ends at step {num_steps:,}'
    )


def _on_emas(config):
  # With a ramp-up, an EMA forgets the initial weights in its first steps.
  if config.ema.rampup_ratio:
    return
  for decay in config.ema.decays:
    initial = decay**config.train.num_steps
    if initial > _MOST_INITIAL:
      yield (
          f'after {config.train.num_steps:,} steps, {initial:.0%} of the EMA of'
          f' decay {decay} (ema.decays) is the initial weights: use a smaller'
          ' decay, or ema.rampup_ratio=0.05'
      )


def _on_schedule(config):
  diffusion = config.diffusion
  if diffusion.schedule == 'edm':
    return
  signal = build.make_process(config).alphas_cumprod[-1]
  ratio = signal / (1 - signal)
  if ratio > _MOST_SIGNAL:
    better = 'use diffusion.schedule=cosine'
    if diffusion.schedule == 'linear':
      better += ', a larger diffusion.beta_end or more timesteps'
    yield (
        f'the {diffusion.schedule} schedule with {diffusion.num_timesteps:,}'
        f' timesteps never reaches noise, which samplers start from: its final'
        f' signal-to-noise ratio is {ratio:.2g}, expected at most'
        f' {_MOST_SIGNAL:g}: {better}'
    )


def _on_attention(config):
  model = config.model
  heights = unet.heights(
      build.image_size(config), len(model.channel_multipliers), model.patch_size
  )
  for missing in sorted(set(model.attention_resolutions) - set(heights)):
    yield (
        f'there is no attention at height {missing}'
        " (model.attention_resolutions): the U-Net's feature maps are"
        f' {", ".join(map(str, heights))} high'
    )
