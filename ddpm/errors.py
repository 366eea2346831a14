"""How a program tells its user what to mend."""

import contextlib
import logging as std_logging
import os
import re
import sys

from absl import app
from absl import flags
from absl import logging
import tensorflow as tf

from ddpm import RESTART


class UserError(Exception):
  """Bad input, or a machine that lacks something: what the user can mend.

  The message is one line: what was got, what was expected, how to mend it.
  """


class Interrupted(Exception):
  """The program had to end, and would go on if it were started again."""


def reason(error):
  """What an exception says, in one line, without TensorFlow's node names."""
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None)
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', text or str(error), flags=re.DOTALL)
  return ' '.join(text.split()) or type(error).__name__


@contextlib.contextmanager
def writing(path):
  """Turns what the file system refuses into a UserError that names the path."""
  try:
    yield
  except (OSError, tf.errors.OpError) as e:
    raise UserError(f'{path} cannot be written: {reason(e)}') from e


def run(main):
  """`absl.app.run`, but a user's mistake is one line and exit code 1.

  Where the same command would go on, `Interrupted`, the code is RESTART.
  """

  def parse(argv):
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
    except UserError as e:
      _exit(e)
    except Interrupted as e:
      _exit(e, RESTART)

  app.run(guarded, flags_parser=parse)


def _is_ours_or_a_warning(record):
  ours = os.path.dirname(__file__)
  return record.levelno >= std_logging.WARNING or ours in record.pathname


def _exit(error, code=1):
  # What passed through a KeyError is quoted, and its line ends are escaped.
  text = str(error).replace('\\n', '. ').replace("\\'", "'")
  message = ' '.join(text.split())
  kind = 'error' if code == 1 else 'interrupted'
  print(f'ddpm: {kind}: {message}', file=sys.stderr)
  sys.exit(code)
