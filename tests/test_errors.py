"""What an exception says in one line, and what a full disk is turned into."""

import errno
import os

import pytest
import tensorflow as tf

from ddpm.runtime import errors
from ddpm.runtime.errors import UserError

with tf.Graph().as_default():
  OPERATION = tf.constant(1.0).op


@pytest.mark.parametrize(
    'error, expected',
    [
        # Without its number and its path, which the caller names.
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/disk/file'),
         'No space left on device'),
        (tf.errors.NotFoundError(None, None, '/gone; No such file [Op:Read]'),
         '/gone; No such file'),
        (tf.errors.AbortedError(None, None, '{{function_node f}}one\n  two'),
         'one two'),
        # A node's name may go over several lines.
        (ValueError('{{node\n a}} is bad [Op:Add]\nname: add'), 'is bad'),
        (ValueError('plain'), 'plain'),
        (RuntimeError(), 'RuntimeError'),
        (tf.errors.UnknownError(None, None, ''), 'UnknownError'),
        # As text it has where the operation was made, in many lines.
        (tf.errors.UnknownError(None, OPERATION, 'plain'), 'plain'),
    ],
)  # fmt: skip
def test_reason(error, expected):
  assert errors.reason(error) == expected


@pytest.mark.parametrize(
    'error, expected',
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS)),
         'a/b cannot be written: Read-only file system'),
        (tf.errors.ResourceExhaustedError(None, None, 'full'),
         'a/b cannot be written: full'),
    ],
)  # fmt: skip
def test_writing_names_the_path(error, expected):
  with pytest.raises(UserError) as caught, errors.writing('a/b'):
    raise error
  assert str(caught.value) == expected
  # Who looks for a bug finds the first error.
  assert caught.value.__cause__ is error


def test_writing_leaves_other_errors_as_they_are():
  with pytest.raises(ValueError, match=r'^a bug$'), errors.writing('a/b'):
    raise ValueError('a bug')


def test_writing_of_a_file_that_is_no_folder(tmp_path):
  """Python's own error and TensorFlow's."""
  file = tmp_path / 'file'
  file.write_text('')
  path = str(file / 'below')
  message = f'^{path} cannot be written: .*irectory'
  for write in (open, tf.io.gfile.GFile):
    with (
        pytest.raises(UserError, match=message),
        errors.writing(path),
        write(path, 'w') as f,
    ):
      f.write('x')


def test_a_bad_argument_is_a_user_error_and_an_interruption_is_not():
  assert issubclass(errors.BadArgument, UserError)
  assert not issubclass(errors.Interrupted, UserError)
