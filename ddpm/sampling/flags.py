"""Sampler and weights flags, shared by all programs that draw."""

from absl import flags

from ddpm.diffusion import solvers

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string(
      'sampler',
      None,
      f"One of {', '.join(solvers.SOLVERS)}; by default the config's.",
  )
  flags.DEFINE_integer(
      'steps',
      None,
      "Sampler steps; by default the config's for its own sampler, else the"
      " sampler's default.",
  )
  flags.DEFINE_float(
      'eta',
      None,
      f"Noise of {solvers.TAKE_ETA}: 0 for none, 1 for as much as ancestral; by"
      " default the config's.",
  )
  flags.DEFINE_float(
      'guidance', 1.0, 'Scale of classifier-free guidance; 1 for none.'
  )
  flags.DEFINE_string(
      'weights',
      'ema',
      "ema (the run's first EMA), ema:DECAY or power:STD (another tracked EMA),"
      ' posthoc:STD (built from all checkpoints up to this one), or raw.',
  )


def settings():
  """Keyword arguments of `sampler.for_run` from the flags; None if not set."""
  return {
      'sampler': FLAGS.sampler,
      'steps': FLAGS.steps,
      'eta': FLAGS.eta,
      'guidance': FLAGS.guidance,
  }
