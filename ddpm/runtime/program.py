"""Starts a program, and reports its errors."""

import logging as std_logging
import os
import signal
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

# The name that ml_collections gives the module of --config.
_CONFIG_MODULE = 'config_config'


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
      return flags.FLAGS(_last_of_each(argv))
    except SystemExit:  # Help was shown. absl exits with 1.
      _flush_stdout()
      sys.exit(0)
    # A config file may raise anything.
    except Exception as e:
      _exit(_config_error(e) or e)

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
      code = main(*chosen)
      _flush_stdout()
      return code
    except BadArgument as e:
      _exit(f'--{e}')
    except UserError as e:
      _exit(e)
    except Interrupted as e:
      _exit(e, RESTART)
    except BrokenPipeError:
      _flush_stdout()
      return 128 + signal.SIGPIPE
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
  except AttributeError:
    pass  # `config.validate` says what it is instead.


def _last_of_each(argv):
  """Drops settings that are given again: ml_collections would join tuples."""
  groups = []
  for arg in argv:
    if groups and not arg.startswith('--'):
      groups[-1].append(arg)  # The value, after a space.
    else:
      groups.append([arg])
  names = [group[0].partition('=')[0] for group in groups]
  last = dict(zip(names, groups))
  return [
      arg
      for name, group in zip(names, groups)
      if not name.startswith('--config.') or group is last[name]
      for arg in group
  ]


def _config_error(error):
  """What a config file raised, with file and line; None for other errors."""
  found = None
  while error:
    kind = type(error).__name__
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get('__name__') == _CONFIG_MODULE
    ]
    if isinstance(error, SyntaxError):
      found = f'{error.filename}, line {error.lineno}: {kind}: {error.msg}'
    elif frames and not isinstance(error, (flags.Error, UserError)):
      file, line = frames[-1]
      found = f'{file}, line {line}: {kind}: {error}'
    elif str(error).startswith(('get_config()', f'module {_CONFIG_MODULE!r}')):
      found = str(error).replace(f'module {_CONFIG_MODULE!r}', 'the file')
    error = error.__cause__ or error.__context__
  return found and f'--config: {found}'


def _flush_stdout():
  """Writes what is left, unless its reader has left, as in `| head -1`."""
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
