"""How a program ends: its exit code, and what it leaves on stderr."""

import json
import logging
import os
import subprocess
import sys

import pytest
from support import ROOT

from ddpm.runtime import program

# Ends a small program in each way that standard input lists, each in a process
# of its own: forks of one that has imported what they need.
_DRIVER = """
import json, os, sys, tempfile
from absl import flags
from ddpm.runtime import errors, program

def main():
  if kind:
    raise {**vars(errors), 'RuntimeError': RuntimeError}[kind](message)

def define_flags():
  flags.DEFINE_integer('number', 1, 'A number.')

ends = []
for kind, message, args in json.load(sys.stdin):
  with tempfile.TemporaryFile() as stderr:
    if not (pid := os.fork()):
      os.dup2(stderr.fileno(), 2)
      sys.argv = ['small', *args]
      program.start(main, define_flags)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    stderr.seek(0)
    ends.append([code, stderr.read().decode()])
print(json.dumps(ends))
"""

# An exception of errors.py, its message, the arguments; code and stderr.
_ENDS = {
    'well': (None, '', ['--number=2'], 0, ''),
    'user': ('UserError', 'the disk is full', [], 1,
             'ddpm: error: the disk is full\n'),
    'argument': ('BadArgument', 'steps is 0, expected 1', [], 1,
                 'ddpm: error: --steps is 0, expected 1\n'),
    'interrupted': ('Interrupted', 'step 4 is saved', [], 75,
                    'ddpm: interrupted: step 4 is saved\n'),
    'lines': ('UserError', 'one\n  two', [], 1, 'ddpm: error: one two\n'),
    # As a KeyError quotes a message.
    'quoted': ('UserError', "it\\'s one\\ntwo", [], 1,
               "ddpm: error: it's one. two\n"),
}  # fmt: skip

# The same, but for a part of stderr, which is one line.
_BAD_FLAGS = {
    'surplus': (None, '', ['more'], 1, "unknown argument 'more'"),
    'no flag': (None, '', ['--nmber=2'], 1, "command line flag 'nmber'"),
    'no number': (None, '', ['--number=two'], 1, '--number=two'),
}

# A bug is shown in whole.
_BUG = {'bug': ('RuntimeError', 'a bug', [], 1, 'RuntimeError: a bug\n')}


@pytest.fixture(scope='module')
def ends():
  cases = _ENDS | _BAD_FLAGS | _BUG
  done = subprocess.run(
      [sys.executable, '-c', _DRIVER],
      input=json.dumps([case[:3] for case in cases.values()]),
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 0, done.stderr
  return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize('name', _ENDS)
def test_ends(ends, name):
  *_, code, stderr = _ENDS[name]
  assert ends[name] == [code, stderr]


@pytest.mark.parametrize('name', _BAD_FLAGS)
def test_a_bad_flag_is_one_line(ends, name):
  *_, expected, part = _BAD_FLAGS[name]
  code, stderr = ends[name]
  assert code == expected
  assert stderr.startswith('ddpm: error: ') and part in stderr
  assert stderr.count('\n') == 1 and stderr.endswith('\n')


def test_a_bug_is_a_traceback(ends):
  *_, expected, last_line = _BUG['bug']
  code, stderr = ends['bug']
  assert code == expected and 'Traceback' in stderr
  assert stderr.endswith(last_line) and 'ddpm: error' not in stderr


# Runs a program, and says whether it loaded TensorFlow.
_WATCHED = """
import runpy, sys
module, *args = sys.argv[1:]
sys.argv = ['-m']  # As Python has it while it imports ddpm.
import ddpm
sys.argv = [module, *args]
try:
  runpy.run_module(module, run_name='__main__', alter_sys=True)
finally:
  print('loaded:', {'tensorflow', 'keras'} & set(sys.modules))
"""


@pytest.mark.parametrize(
    'name, args, said',
    [
        ('main', ['--help'], '--[no]dry_run'),
        ('sample', ['--help'], '--seeds'),
        ('evaluate', ['--help'], '--metrics'),
        ('convert', ['--help'], '--to_diffusers'),
        ('metrics.extractors.train_mnist', ['--help'], '--data_dir'),
        ('main', ['--workdir=W'], '--config is missing'),
        ('main', ['--config=no.py', '--workdir=W'], "'no.py'"),
        ('main', ['--config=configs/mnist5k.py'], '--workdir is missing'),
        ('main', ['--config=configs/mnist5k.py', '--config.model.chanels=3'],
         'chanels'),
        ('sample', ['--workdir=W', '--outdir=O', '--sampler=euler'],
         "--sampler is 'euler', expected one of: ancestral"),
        ('sample', ['--workdir=W', '--outdir=O', '--steps=0'],
         '--steps is 0, expected at least 1'),
        ('evaluate', ['--workdir=W', '--metrics=fd'],
         '--metrics is fd, expected some of: bpd, fid'),
        ('convert', ['--workdir=W'], 'got 0'),
        ('report', ['--help'], '--[no]live'),
        ('report', [], '--workdir is missing'),
        ('report', ['--workdir=W', '--live', '--out=F'], '--out'),
        ('report', ['--workdir=W', '--port=8080'], '--port is for --live'),
    ],
)  # fmt: skip
def test_help_and_wrong_flags_do_not_wait_for_tensorflow(name, args, said):
  done = subprocess.run(
      [sys.executable, '-c', _WATCHED, f'ddpm.{name}', *args],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert said in (done.stdout if '--help' in args else done.stderr)
  assert done.stdout.endswith('loaded: set()\n')


@pytest.mark.parametrize(
    'path, level, shown',
    [
        ('ddpm/run/logs.py', logging.INFO, True),
        ('other/tfds.py', logging.INFO, False),
        ('other/tfds.py', logging.WARNING, True),
    ],
)
def test_the_log_is_ours_and_all_warnings(path, level, shown):
  record = logging.makeLogRecord({
      'pathname': os.path.join(ROOT, path), 'levelno': level,
  })  # fmt: skip
  assert program._is_ours_or_a_warning(record) == shown
