"""The Python API, in interpreters of their own, as a notebook has them."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import ROOT
from support import run_fork
from support import TINY_WITHOUT_XLA

# What a Jupyter kernel does around a cell.
_AS_A_KERNEL = """
import asyncio, io, sys
async def cell():
  sys.stderr = io.StringIO()
{cell}
asyncio.run(cell())
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a run in runs/mnist5k, and 4 images of it in out/."""
  folder = tmp_path_factory.mktemp('api')
  workdir = folder / 'runs' / 'mnist5k'
  for program, *flags in (
      ('ddpm.main', *TINY_WITHOUT_XLA, '--config.train.num_steps=4'),
      ('ddpm.sample', '--seeds=5-8', f'--outdir={folder}/out'),
  ):
    done = run_fork(program, *flags, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
  return folder


def python(script, folder):
  done = subprocess.run(
      [sys.executable, '-c', f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n'
       + script],
      cwd=folder, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('where', ['interpreter', 'kernel'])
def test_the_readmes_lines(folder, where):
  (lines,) = re.findall(
      r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL
  )
  script = lines
  if where == 'kernel':
    cell = ''.join(f'  {line}\n' for line in lines.splitlines())
    script = _AS_A_KERNEL.format(cell=cell)
  printed = python(script, folder)
  assert printed.startswith('4 (16, 28, 28, 1) {')
  assert 'fd_mnist@500' in printed and 'recall_mnist@500' in printed
  assert (folder / 'runs' / 'mnist5k' / 'evaluation.jsonl').exists()


def test_images_are_those_of_the_program(folder):
  python(
      'import ddpm, numpy\n'
      "run = ddpm.Run('runs/mnist5k')\n"
      "numpy.save('images.npy', run.sample([5, 6, 7, 8]))\n",
      folder,
  )
  with np.load(folder / 'out' / 'samples.npz') as drawn:
    expected = drawn['images'].astype(int)
  difference = np.abs(np.load(folder / 'images.npy') - expected)
  assert difference.max() <= 1 and expected.std() > 10


def test_train_resumes_what_the_program_began(folder, tmp_path):
  shutil.copytree(folder / 'runs', tmp_path / 'runs')
  printed = python(
      'import ddpm, pathlib\n'
      "workdir = pathlib.Path('runs') / 'mnist5k'\n"
      'config = ddpm.Run(workdir).config\n'
      'config.train.num_steps = 6\n'
      'run = ddpm.train(config, workdir)\n'
      'print(run.config.train.num_steps, run.sample([1]).shape)\n',
      tmp_path,
  )
  assert printed.strip() == '6 (1, 28, 28, 1)'
  lines = (tmp_path / 'runs/mnist5k/metrics.jsonl').read_text().splitlines()
  assert len(lines) == 6


def test_errors_are_one_line(folder):
  printed = python(
      'import ddpm\n'
      'from ddpm.runtime.errors import UserError\n'
      "run = ddpm.Run('runs/mnist5k')\n"
      'for call in (\n'
      "    lambda: ddpm.Run('nowhere'),\n"
      "    lambda: run.sample([0], sampler='euler'),\n"
      '    lambda: run.evaluate(num_samples=1),\n'
      "    lambda: run.evaluate(metrics=['lpips']),\n"
      '    lambda: run.sample([]),\n'
      '    lambda: run.sample([-1]),\n'
      '    lambda: run.sample([0], labels=[3]),\n'
      '):\n'
      '  try:\n'
      '    call()\n'
      '  except UserError as e:\n'
      '    print(e)\n',
      folder,
  )
  lines = printed.splitlines()
  assert len(lines) == 7
  assert 'nowhere has no checkpoints' in lines[0]
  assert "sampler is 'euler'" in lines[1] and 'num_samples is 1' in lines[2]
  assert 'metrics is lpips, expected some of: bpd' in lines[3]
  assert 'seeds is [], expected' in lines[4]
  assert 'seeds is [-1], expected' in lines[5]
  assert 'labels is [3], but the model has no classes' in lines[6]
