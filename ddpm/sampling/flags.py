"""Flags of all programs that draw: which weights, by which sampler."""

from absl import flags

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string(
      'sampler',
      None,
      'ancestral, ddim, dpmpp_2m or heun; by default what the config says.',
  )
  flags.DEFINE_integer(
      'steps',
      None,
      'Steps of the sampler; by default what the config says, for its own'
      ' sampler, or what another one is good with.',
  )
  flags.DEFINE_float(
      'eta',
      None,
      'Noise of ddim and dpmpp_2m: 0 for none, 1 for as much as ancestral; by'
      ' default what the config says.',
  )
  flags.DEFINE_float(
      'guidance', 1.0, 'Scale of classifier-free guidance; 1 for none.'
  )
  flags.DEFINE_string(
      'weights',
      'ema',
      'ema (the first average of the run); ema:DECAY or power:STD, another that'
      ' it tracks; posthoc:STD, built from all checkpoints up to this one;'
      ' or raw.',
  )


def settings():
  """What `trained.Trained.sampler` is to be called with; None: not said."""
  return {
      'sampler': FLAGS.sampler,
      'steps': FLAGS.steps,
      'eta': FLAGS.eta,
      'guidance': FLAGS.guidance,
  }
