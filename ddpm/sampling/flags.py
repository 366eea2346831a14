"""Flags of all programs that draw: which weights, by which sampler."""

from absl import flags

_SAMPLER = flags.DEFINE_string(
    'sampler',
    None,
    'ancestral, ddim, dpmpp_2m or heun; by default what the config says.',
)

_STEPS = flags.DEFINE_integer(
    'steps',
    None,
    'Steps of the sampler; by default what the config says, for its own'
    ' sampler, or what another one is good with.',
)

_ETA = flags.DEFINE_float(
    'eta',
    None,
    'Noise of ddim and dpmpp_2m: 0 for none, 1 for as much as ancestral; by'
    ' default what the config says.',
)

_GUIDANCE = flags.DEFINE_float(
    'guidance', 1.0, 'Scale of classifier-free guidance; 1 for none.'
)

WEIGHTS = flags.DEFINE_string(
    'weights',
    'ema',
    'ema (the first average of the run); ema:DECAY or power:STD, another that'
    ' it tracks; posthoc:STD, built from all checkpoints up to this one;'
    ' or raw.',
)


def settings():
  """What `trained.Trained.sampler` is to be called with; None: not said."""
  return {
      'sampler': _SAMPLER.value,
      'steps': _STEPS.value,
      'eta': _ETA.value,
      'guidance': _GUIDANCE.value,
  }
