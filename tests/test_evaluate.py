"""The evaluation program, as users run it."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import ROOT
from support import run_fork
from support import run_program
from support import start_program
from support import TINY_WITHOUT_XLA
from support import wait_for
import tensorflow as tf

NUM = ['--num_samples=600', '--metrics=fid,kid,is,prdc,nearest']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Checkpoints of steps 2 and 4, to be scored on two virtual devices."""
  workdir = tmp_path_factory.mktemp('run')
  done = run_fork(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={workdir}',
      '--config.train.num_steps=4',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  # What the run is told to use, the evaluation uses, too.
  set_devices(workdir, strategy='mirrored', virtual_devices=2)
  return workdir


def set_devices(workdir, **distribute):
  path = workdir / 'config.json'
  config = json.loads(path.read_text()) | {'distribute': distribute}
  path.write_text(json.dumps(config))


@pytest.fixture(scope='module')
def evaluated(workdir, tmp_path_factory):
  """All checkpoints scored; killed after the first part of the samples."""
  cache = str(tmp_path_factory.mktemp('cache'))
  out = tmp_path_factory.mktemp('out') / 'result.json'
  command = (
      'ddpm.evaluate', f'--workdir={workdir}', '--every_checkpoint',
      *NUM, f'--out={out}',
  )  # fmt: skip
  process = start_program(*command, XDG_CACHE_HOME=cache)
  parts = wait_for(
      lambda: list(workdir.glob('evaluation/*/*/*.npz')),
      'part of the samples',
      process=process,
  )
  process.send_signal(signal.SIGKILL)
  process.wait()
  drawn = parts[0].stat().st_mtime_ns
  done = run_program(*command, XDG_CACHE_HOME=cache)
  assert done.returncode == 0, done.stderr
  assert parts[0].stat().st_mtime_ns == drawn
  return done, json.loads(out.read_text())


def rows(workdir):
  text = (workdir / 'evaluation.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_result_names_all_that_made_it(workdir, evaluated):
  done, result = evaluated
  details = result['details']
  assert set(result) - {'details'} == {
      *(
          f'{name}_mnist@600'
          for name in (
              'fd', 'kid', 'kid_stderr', 'is', 'is_std',
              'precision', 'recall', 'density', 'coverage',
          )
      ),
      'nearest@600',
      'nearest_p01@600',
  }  # fmt: skip
  assert set(details['floor']) == set(result) - {'details'}
  # An untrained network draws no digits.
  assert result['fd_mnist@600'] > 10 * details['floor']['fd_mnist@600'] > 0
  assert details['step'] == 4 and details['weights'] == 'ema:0.995'
  assert details['sampler'] == 'ancestral' and details['steps'] == 2
  assert details['data'] == 'mnist5k' and details['split'] == 'train'
  assert details['num_samples'] == details['floor_num_samples'] == 600
  for name, value in result.items():
    if name != 'details':
      assert f'{name} ' in done.stdout and f'{value:.4g}' in done.stdout


def test_a_curve_over_the_checkpoints(workdir, evaluated):
  found = rows(workdir)
  assert [row['details']['step'] for row in found] == [2, 4]
  assert found[1] == evaluated[1]
  png = (workdir / 'evaluation.png').read_bytes()
  picture = tf.io.decode_png(png).numpy()
  assert picture.shape[0] > 300 and picture.std() > 10
  assert list((workdir / 'tensorboard' / 'evaluation').iterdir())


def test_samples_of_the_sampler_program_get_the_same_scores(
    workdir, evaluated, tmp_path
):
  """Other batches, another process, one device, an .npz file."""
  done = run_fork(
      'ddpm.sample', f'--workdir={workdir}', '--seeds=0-599', '--batch_size=50',
      f'--outdir={tmp_path}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  done = run_program(
      'ddpm.evaluate', f'--samples={tmp_path}/samples.npz', '--data=mnist5k',
      *NUM, f'--out={tmp_path}/result.json', XDG_CACHE_HOME=str(tmp_path),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'result.json').read_text())
  expected = dict(evaluated[1])
  floor = result['details']['floor']
  assert floor == pytest.approx(expected['details']['floor'])
  for name, value in result.items():
    # Where a pixel rounds the other way, an image goes into another block.
    blocks = {
        'kid': expected['kid_stderr_mnist@600'],
        'is': expected['is_std_mnist@600'],
    }.get(name.partition('_')[0], 1e-3)
    if name != 'details':
      assert value == pytest.approx(expected[name], rel=1e-3, abs=blocks)


def test_a_part_of_the_samples_and_two_at_once(tmp_path):
  """The part is chosen at random: the digits are sorted by their classes."""
  digits = np.load(ROOT / 'ddpm' / 'data' / 'mnist5k.npz')
  order = np.argsort(digits['labels'], kind='stable')
  np.savez(
      tmp_path / 'sorted.npz',
      arr_0=digits['images'][order], arr_1=digits['labels'][order],
  )  # fmt: skip
  np.savez(tmp_path / 'plain.npz', **digits)
  scores = []
  processes = [
      start_program(
          'ddpm.evaluate', f'--samples={tmp_path}/{name}.npz', '--data=mnist5k',
          '--num_samples=1000', '--metrics=kid,is',
          f'--out={tmp_path}/{name}.json', XDG_CACHE_HOME=str(tmp_path),
      )
      for name in ('sorted', 'plain')
  ]  # fmt: skip
  for name, process in zip(('sorted', 'plain'), processes):
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    result = json.loads((tmp_path / f'{name}.json').read_text())
    del result['details']
    scores.append(result)
  assert scores[0] == pytest.approx(scores[1], rel=1e-6)
  assert scores[0]['is_mnist@1000'] > 9
  assert scores[0]['class_agreement_mnist@1000'] > 0.99
  assert abs(scores[0]['kid_mnist@1000']) < 1


def test_bits_per_dimension_and_sampler_steps(workdir, evaluated):
  """A few images of a network that knows nothing; another number of steps."""
  done = run_fork(
      'ddpm.evaluate', f'--workdir={workdir}', '--metrics=fid,bpd',
      '--num_samples=40', '--split=train', '--sampler=ddim', '--steps=5',
      '--weights=raw',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  (row,) = [row for row in rows(workdir) if row['details']['steps'] == 5]
  # Of 8 bits; the bound of such a network is above that.
  assert 1 < row['bpd@40'] < 100 and row['bpd_stderr@40'] > 0
  assert row['details']['bpd_split'] == 'train'
  assert row['details']['weights'] == 'raw'


# Calls of the program with what is wrong, and a part of what it says.
ERRORS = [
    ([], 'one of --workdir and --samples is needed'),
    (['--samples=RUN/digits.npz'], '--data is missing'),
    (['--workdir=RUN', '--metrics=fid,lpips'], '--metrics is fid,lpips, exp'),
    (['--workdir=RUN', '--num_samples=9', '--metrics=is'],
     '--num_samples is 9, expected at least 10 for the metrics is'),
    (['--workdir=RUN', '--split=val'], "--split is 'val', expected train or"),
    (['--workdir=RUN', '--metrics=bpd'], "mnist5k has no split 'test'"),
    (['--workdir=RUN', '--weights=best'], "--weights is 'best', expected ema"),
    (['--workdir=RUN', '--sampler=euler'], "--sampler is 'euler', expected"),
    (['--workdir=RUN', '--steps=21'], '--steps is 21, expected at most 20'),
    (['--workdir=RUN/nothing'], 'has no checkpoints: train first'),
    (['--workdir=RUN', '--data=cifar10'], "--data is 'cifar10', expected"),
    (['--workdir=RUN', '--features=inception',
      '--inception_weights=RUN/none.pth'], 'pass it as inception_weights'),
    (['--samples=RUN/digits.npz', '--data=mnist5k', '--num_samples=50'],
     'has 40 images, but --num_samples is 50'),
    (['--samples=RUN/colour.npz', '--data=mnist5k', '--metrics=nearest'],
     'are 28 x 28 x 3, but the images of mnist5k are 28 x 28 x 1'),
    (['--samples=RUN/digits.npz', '--data=folder:RUN/checkpoints'],
     'RUN/checkpoints has no images'),
    (['--samples=RUN/nan.npz', '--data=mnist5k'], '2 images have NaN pixels'),
    (['--samples=RUN/digits.npz', '--data=mnist5k', '--metrics=bpd'],
     '--metrics=bpd needs --workdir'),
]  # fmt: skip

# Runs the program for each list of flags on standard input, in one process.
DRIVER = """
import json, sys
from absl import flags
from ddpm import evaluate
from ddpm.runtime.errors import BadArgument, UserError
evaluate.define_flags()
for argv in json.load(sys.stdin):
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(['evaluate', *argv])
  try:
    evaluate.check_flags()
    evaluate.main()
    print('no error')
  except UserError as e:
    print('--' * isinstance(e, BadArgument) + str(e))
"""


def test_errors_are_one_line(workdir, tmp_path):
  workdir = shutil.copytree(workdir, tmp_path / 'run')
  # Virtual devices are made once in a process, and this one has many calls.
  set_devices(workdir, strategy='auto', virtual_devices=0)
  digits = np.zeros([40, 28, 28, 1], np.uint8)
  np.savez(workdir / 'digits.npz', images=digits)
  np.savez(workdir / 'colour.npz', images=digits.repeat(3, axis=-1))
  np.savez(workdir / 'nan.npz', images=np.full([2, 28, 28, 1], np.nan, 'f4'))
  calls = [
      [flag.replace('RUN', str(workdir)) for flag in argv] for argv, _ in ERRORS
  ]
  done = subprocess.run(
      [sys.executable, '-c', DRIVER],
      input=json.dumps(calls),
      cwd=ROOT,
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.replace(str(workdir), 'RUN').splitlines()
  for (argv, expected), line in zip(ERRORS, lines, strict=True):
    assert expected in line, (argv, line)


def test_the_program_ends_with_1_on_an_error(tmp_path):
  done = run_program('ddpm.evaluate', f'--workdir={tmp_path}')
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith('ddpm: error: ')
