"""How a program tells its user what to mend."""

import contextlib
import re

import tensorflow as tf


class UserError(Exception):
  """Bad input, or a machine that lacks something: what the user can mend.

  The message is one line: what was got, what was expected, how to mend it.
  """


class BadArgument(UserError):
  """A function's argument is out of range, or does not suit the run.

  The message begins with the argument's name. A program puts `--` before it:
  its flags have the same names.
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
