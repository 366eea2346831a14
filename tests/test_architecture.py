"""Imports go down: a list of the edges that are allowed between packages."""

import ast
import subprocess
import sys

import pytest
from support import ROOT

# From the top floor down. A package may import those that it names; the
# programs may import anything.
_ALLOWED = {
    'api': {'training', 'sampling', 'metrics', 'run', 'runtime'},
    'training': {'reporting', 'sampling', 'run', 'data', 'nn', 'diffusion',
                 'optim', 'rng', 'runtime'},
    'reporting': {'metrics', 'sampling', 'run', 'runtime'},
    'sampling': {'run', 'data', 'diffusion', 'nn', 'rng', 'runtime'},
    'metrics': {'run', 'data', 'diffusion', 'nn', 'rng', 'runtime'},
    'formats': {'run', 'runtime'},
    'run': {'data', 'diffusion', 'nn', 'optim', 'runtime'},
    'data': {'rng', 'runtime'},
    'nn': {'rng'},
    'diffusion': {'rng'},
    'optim': set(),
    'rng': set(),
    'runtime': set(),
}  # fmt: skip
_PROGRAMS = {'main', 'sample', 'evaluate', 'convert', 'report'}

_MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
        '.__init__'
    ): path
    for path in (ROOT / 'ddpm').rglob('*.py')
}


def imports_of(module):
  """The modules of ddpm that a module imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(_MODULES[module].read_text())):
    if isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    for name in names:
      while name and name not in _MODULES:
        name = name.rpartition('.')[0]
      if name:
        found.add(name)
  return found - {module}


_IMPORTS = {module: imports_of(module) for module in _MODULES}


def package_of(module):
  return module.split('.')[1] if '.' in module else ''


@pytest.mark.parametrize('package', sorted(_ALLOWED))
def test_a_package_imports_what_is_below_it(package):
  uses = {
      package_of(imported)
      for module, imports in _IMPORTS.items()
      for imported in imports
      if package_of(module) == package
  }
  # The package itself, ddpm, holds its version, and imports nothing heavy.
  assert uses - {package, ''} == _ALLOWED[package]


def test_programs_alone_are_at_the_top():
  top = {path.stem for path in (ROOT / 'ddpm').glob('*.py')}
  assert top - {'__init__'} == _PROGRAMS
  folders = {module.split('.')[1] for module in _MODULES if '.' in module}
  assert folders - _PROGRAMS == set(_ALLOWED)


def test_no_program_is_imported():
  for module, imports in _IMPORTS.items():
    assert not imports & {f'ddpm.{name}' for name in _PROGRAMS}, module


def test_no_import_goes_in_a_circle():
  """Every module can be put after all that it imports."""
  left = {
      # A package's own file says what is in it, and is above its modules.
      module: {i for i in imports if not module.startswith(f'{i}.')}
      for module, imports in _IMPORTS.items()
  }
  while left:
    ready = [module for module, imports in left.items() if not imports]
    assert ready, f'a circle among {sorted(left)}'
    for module in ready:
      del left[module]
    for imports in left.values():
      imports.difference_update(ready)


def test_configs_are_no_part_of_the_package():
  """configs/ imports ddpm; the other way round it would be a circle."""
  for module, path in _MODULES.items():
    assert 'configs import' not in path.read_text(), module


def python(script):
  """What a script prints in an interpreter of its own."""
  done = subprocess.run(
      [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
      check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


def test_all_programs_can_be_imported_in_one_process():
  """Their flags, which share names, are defined where a program starts."""
  modules = ', '.join(f'ddpm.{name}' for name in sorted(_PROGRAMS))
  assert python(f'import {modules}; print("done")') == 'done'


def test_an_import_starts_no_tensorflow_and_changes_no_setting():
  assert python("""
import os, signal, sys
before = dict(os.environ), signal.getsignal(signal.SIGTERM)
import ddpm
import ddpm.diffusion
assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == before
assert 'tensorflow' not in sys.modules
print(ddpm.__version__)
""") == '0.1.0'
