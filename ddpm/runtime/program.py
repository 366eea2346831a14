"""Starts a program, and reports its errors."""

import logging as std_logging
import os
import sys

from absl import app
from absl import flags
from absl import logging

from ddpm.runtime.environment import RESTART
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import UserError


def start(main, define_flags):
  """`absl.app.run`, with one-line error messages.

  A `UserError` exits with code 1, an `Interrupted` with RESTART.

  Args:
    main: function ().
    define_flags: function () that defines the program's flags. They are
      defined here, not on import, so that several programs can be imported
      together.
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
    if len(argv) > 1:
      _exit(f'unknown argument {argv[1]!r}: flags start with --')
    try:
      main()
    except BadArgument as e:
      _exit(f'--{e}')
    except UserError as e:
      _exit(e)
    except Interrupted as e:
      _exit(e, RESTART)

  app.run(guarded, flags_parser=parse)


def _is_ours_or_a_warning(record):
  ours = os.path.dirname(os.path.dirname(__file__))
  return record.levelno >= std_logging.WARNING or ours in record.pathname


def _exit(error, code=1):
  # KeyError quotes its message and escapes line breaks.
  text = str(error).replace('\\n', '. ').replace("\\'", "'")
  message = ' '.join(text.split())
  kind = 'error' if code == 1 else 'interrupted'
  print(f'ddpm: {kind}: {message}', file=sys.stderr)
  sys.exit(code)
