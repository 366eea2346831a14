"""Sampler and weights flags, shared by all programs that draw."""

from absl import flags

from ddpm.diffusion import solvers
from ddpm.runtime.errors import BadArgument

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_enum(
      'strategy',
      'auto',
      ['auto', 'one_device', 'mirrored', 'tpu'],
      'Devices: all GPUs, the TPU or else the CPU; or one device.',
  )
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


def check_flags():
  """Raises UserError if a flag is out of range for every run."""
  # Without --sampler it is up to the run whether eta fits.
  named = FLAGS.sampler is not None
  try:
    solvers.SamplerSpec(
        FLAGS.sampler if named else 'ancestral',
        1 if FLAGS.steps is None else FLAGS.steps,
        eta=FLAGS.eta or 0.0 if named else 0.0,
        guidance=FLAGS.guidance,
    )
  except ValueError as e:
    raise BadArgument(str(e)) from e


def settings():
  """Keyword arguments of `sampler.for_run` from the flags; None if not set."""
  return {
      'sampler': FLAGS.sampler,
      'steps': FLAGS.steps,
      'eta': FLAGS.eta,
      'guidance': FLAGS.guidance,
  }
