"""Errors that users can fix, and their messages."""

import contextlib
import re

from etils import epy

# Programs report bad flags without loading TensorFlow.
with epy.lazy_imports():
  import tensorflow as tf


class UserError(Exception):
  """An error that the user can fix: bad input, or a missing resource.

  The message is one line: what was got, what was expected, how to fix it.
  """


class BadArgument(UserError):
  """A function's argument is out of range or does not fit the run.

  The message starts with the argument's name. Programs prefix it with `--`,
  because their flags have the same names.
  """


class Interrupted(Exception):
  """The program was interrupted; rerun to resume."""


def reason(error):
  """An exception's message in one line, without TensorFlow's node names."""
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None)
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*', '', text or str(error), flags=re.DOTALL)
  return ' '.join(text.split()) or type(error).__name__


def reading(path):
  """Turns file system errors into a UserError that names the path."""
  return _cannot_be('read', path)


def writing(path):
  """Turns file system errors into a UserError that names the path."""
  return _cannot_be('written', path)


@contextlib.contextmanager
def _cannot_be(done, path):
  try:
    yield
  except (OSError, tf.errors.OpError) as e:
    raise UserError(f'{path} cannot be {done}: {reason(e)}') from e
