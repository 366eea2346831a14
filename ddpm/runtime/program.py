"""How a program starts, and how it ends on an error."""

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
  """`absl.app.run`, but a user's mistake is one line and exit code 1.

  On `Interrupted`, where the same command would resume, the code is RESTART.

  Args:
    main: function ().
    define_flags: function () that defines the program's flags. They are
      defined at its start, so that several programs can be imported together.
  """

  def parse(argv):
    define_flags()
    flags.FLAGS.set_default('verbosity', logging.INFO)
    try:
      return flags.FLAGS(argv)
    # ml_collections raises what ConfigDict raises for a key it lacks.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
            OSError) as e:  # fmt: skip
      _exit(e)

  def guarded(argv):
    # TensorFlow and tensorflow-datasets tell of their own inner life.
    logging.get_absl_logger().addFilter(_is_ours_or_a_warning)
    warnings = std_logging.WARNING
    std_logging.getLogger('tensorflow').setLevel(warnings)
    if len(argv) > 1:
      _exit(f'unknown argument {argv[1]!r}: flags begin with --')
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
  # What passed through a KeyError is quoted, and its line ends are escaped.
  text = str(error).replace('\\n', '. ').replace("\\'", "'")
  message = ' '.join(text.split())
  kind = 'error' if code == 1 else 'interrupted'
  print(f'ddpm: {kind}: {message}', file=sys.stderr)
  sys.exit(code)
