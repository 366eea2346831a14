"""Starts a program, and reports its errors."""

import logging as std_logging
import os
import sys
import traceback

from absl import app
from absl import flags
from absl import logging

from ddpm.runtime import cache
from ddpm.runtime import environment
from ddpm.runtime.environment import RESTART
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError


def start(main, define_flags, check_flags=lambda: None, *, commands=()):
  """`absl.app.run`, with one-line error messages.

  A `UserError` exits with code 1, an `Interrupted` with RESTART. TensorFlow is
  imported just before `main`: help and wrong flags do not wait for it.

  Args:
    main: function () -> exit code, None for 0; or, with commands, a function
      of the command.
    define_flags: function () that defines the program's flags. They are
      defined here, not on import, so that several programs can be imported
      together.
    check_flags: function with main's arguments that raises UserError for what
      is wrong without TensorFlow.
    commands: names, one of which has to be the first argument.
  """

  def parse(argv):
    define_flags()
    flags.FLAGS.set_default('verbosity', logging.INFO)
    try:
      return flags.FLAGS(argv)
    # ml_collections passes on ConfigDict's errors, as for unknown keys.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
            OSError) as e:  # fmt: skip
      _exit(e)

  def guarded(argv):
    # TensorFlow and tensorflow-datasets log their own internals.
    logging.get_absl_logger().addFilter(_is_ours_or_a_warning)
    warnings = std_logging.WARNING
    std_logging.getLogger('tensorflow').setLevel(warnings)
    chosen = argv[1:2] if commands else []
    if commands and not set(chosen) & set(commands):
      _exit(f'expected a command first, one of: {", ".join(commands)}')
    if rest := argv[1 + len(chosen) :]:
      _exit(f'unknown argument {rest[0]!r}: flags start with --')
    try:
      check_flags(*chosen)
      environment.import_tensorflow()
      return main(*chosen)
    except BadArgument as e:
      _exit(f'--{e}')
    except UserError as e:
      _exit(e)
    except Interrupted as e:
      _exit(e, RESTART)
    except Exception as e:
      if not cache.is_at_fault(e):
        raise
      logging.warning(
          "XLA's cache is damaged, or its disk full (%s): starting again"
          ' without it',
          reason(e),
      )
      cache.start_again_without()

  app.run(guarded, flags_parser=parse)


def check_config_found(config):
  """Raises UserError if --config named no file."""
  try:
    _ = config.seed
  except OSError as e:
    # What ml_collections puts in the config's place raises on any access.
    missing = str(e).rpartition('] ')[2]
    raise UserError(f'--config: {missing}') from e


def _is_ours_or_a_warning(record):
  ours = os.path.dirname(os.path.dirname(__file__))
  return record.levelno >= std_logging.WARNING or ours in record.pathname


def _exit(error, code=1):
  # KeyError quotes its message and escapes line breaks.
  text = str(error).replace('\\n', '. ').replace("\\'", "'")
  message = ' '.join(text.split())
  kind = 'error' if code == 1 else 'interrupted'
  print(f'ddpm: {kind}: {message}', file=sys.stderr)
  # Frees what the failed functions hold: threads of tf.data that call Python
  # while it ends would abort the process. Not where a worker is lost, as what
  # is freed may wait for it.
  while isinstance(error, BaseException) and code == 1:
    traceback.clear_frames(error.__traceback__)
    error = error.__cause__ or error.__context__
  sys.exit(code)
