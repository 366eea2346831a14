"""The sampler's jobs: by one process, by a second one, by several hosts."""

import json
import os
import re
import shutil
import signal
import time

from conftest import run_program
from conftest import start_program
from conftest import TINY_WITHOUT_XLA
import numpy as np
import pytest
import tensorflow as tf

from ddpm import checkpoint
from ddpm import parts
from ddpm import sample
from ddpm.errors import UserError
from ddpm.metrics import sources

ROWS = parts.ROWS


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of 4 steps, with classes; it drew a grid at its end."""
  path = tmp_path_factory.mktemp('run')
  done = run_program(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={path}',
      '--config.train.num_steps=4', '--config.model.num_classes=10',
      '--config.diffusion.num_timesteps=40',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return path


def draw(workdir, outdir, *flags, **env):
  done = run_program(
      'ddpm.sample', f'--workdir={workdir}', f'--outdir={outdir}', *flags, **env
  )
  assert done.returncode == 0, done.stderr
  return done.stderr


def manifest(outdir):
  return json.loads((outdir / 'manifest.json').read_text())


@pytest.fixture(scope='module')
def drawn(workdir, tmp_path_factory):
  """A finished job."""
  outdir = tmp_path_factory.mktemp('drawn')
  draw(workdir, outdir, '--seeds=0-63')
  return outdir


def close(a, b):
  """Whether images agree but for the order of sums in a batch."""
  differ = np.abs(a.astype(int) - b)
  return differ.max() <= 2 and (differ > 1).mean() < 1e-3


def test_draws_what_the_trainer_drew(workdir, drawn):
  assert {path.name for path in drawn.iterdir()} == {
      'samples.npz', 'grid.png', 'manifest.json',
  }  # fmt: skip
  arrays = np.load(drawn / 'samples.npz')
  assert arrays['images'].shape == (64, 28, 28, 1)
  assert arrays['images'].dtype == np.uint8
  assert arrays['images'].std() > 0
  np.testing.assert_array_equal(arrays['seeds'], np.arange(64))
  assert arrays['seeds'].dtype == np.int64
  np.testing.assert_array_equal(arrays['labels'], np.arange(64) % 10)
  assert arrays['labels'].dtype == np.int32
  assert close(*[
      tf.io.decode_png(tf.io.read_file(str(path / 'grid.png'))).numpy()
      for path in (workdir, drawn)
  ])
  told = manifest(drawn)
  assert told['step'] == 4 and told['weights'] == 'ema:0.995'
  assert told['sampler'] == 'ancestral' and told['steps'] == 2
  assert told['precision'] == 'float32' and told['num_images'] == 64
  assert told['config']['train']['batch_size'] == 8
  assert len(told['weights_digest']) == 16 and len(told['devices']) == 1


def test_evaluate_reads_it(drawn):
  source = sources.samples(drawn / 'samples.npz')
  np.testing.assert_array_equal(
      source.read(7, 20), np.load(drawn / 'samples.npz')['images'][7:20]
  )
  assert len(source.labels) == 64


def test_an_image_is_its_seed_s_in_any_batch_on_any_devices(
    workdir, drawn, tmp_path
):
  """And of the latest checkpoint, by its path, in a file of its own."""
  two = shutil.copytree(workdir, tmp_path / 'run')
  config = json.loads((two / 'config.json').read_text())
  config['distribute'] = {'strategy': 'one_device', 'virtual_devices': 2}
  (two / 'config.json').write_text(json.dumps(config))
  draw(
      two, tmp_path / 'out', '--seeds=3,60-63', '--labels=3,0,1,2,3', '--png',
      '--batch_size=2', f'--checkpoint={workdir}/checkpoints/ckpt-4.index',
  )  # fmt: skip
  arrays = np.load(tmp_path / 'out' / 'samples.npz')
  assert list(arrays['seeds']) == [3, 60, 61, 62, 63]
  whole = np.load(drawn / 'samples.npz')['images']
  assert close(whole[arrays['seeds']], arrays['images'])
  assert len(manifest(tmp_path / 'out')['devices']) == 2
  files = sorted((tmp_path / 'out' / 'png').iterdir())
  assert [f.name for f in files][:2] == ['00000003.png', '00000060.png']
  for file, image in zip(files, arrays['images']):
    pixels = tf.io.decode_png(tf.io.read_file(str(file))).numpy()
    np.testing.assert_array_equal(pixels, image)


def test_precision(workdir, tmp_path):
  flags = ['--precision=mixed_bfloat16', '--seeds=0-3']
  draw(workdir, tmp_path, *flags)
  assert manifest(tmp_path)['precision'] == 'mixed_bfloat16'
  assert manifest(tmp_path)['config']['precision'] == 'float32'


def test_a_finished_job_is_not_done_again(workdir, drawn, tmp_path):
  outdir = shutil.copytree(drawn, tmp_path / 'out')
  (outdir / 'parts').mkdir()  # Killed before it was cleared up.
  before = manifest(outdir)
  log = draw(workdir, outdir, '--seeds=0-63', '--batch_size=5', '--png')
  assert 'is finished: there is nothing to draw' in log
  assert manifest(outdir) == before
  assert len(list((outdir / 'png').iterdir())) == 64
  assert not (outdir / 'parts').exists()


def test_goes_on_where_it_was_killed(workdir, tmp_path):
  seeds = f'--seeds=0-{4 * ROWS - 1}'
  flags = [f'--workdir={workdir}', seeds, '--steps=20']
  process = start_program('ddpm.sample', *flags, f'--outdir={tmp_path}')
  while not (kept := list(tmp_path.glob('parts/rows_*.npz'))):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  # What a part holds is taken as it is.
  images = parts.read_npz(str(kept[0]))['images']
  parts.write_npz(str(kept[0]), {'images': np.full_like(images, 7)})
  log = draw(workdir, tmp_path, *flags[1:])
  count = re.search(r'(\d+) of 2048 images are drawn already', log)
  assert count and int(count[1]) >= ROWS
  assert not (tmp_path / 'parts').exists()
  images = np.load(tmp_path / 'samples.npz')['images']
  assert (images[:ROWS] == 7).all() and images[ROWS:].std() > 0


def test_two_hosts_share_a_job(workdir, drawn, tmp_path):
  seeds = f'--seeds=0-{2 * ROWS + 9}'
  flags = [f'--workdir={workdir}', f'--outdir={tmp_path}', seeds]

  def start(host):
    config = {
        'cluster': {'worker': ['a:1', 'b:1']},
        'task': {'type': 'worker', 'index': host},
    }
    return start_program('ddpm.sample', *flags, TF_CONFIG=json.dumps(config))

  first = start(0)
  while len(list(tmp_path.glob('parts/rows_*.npz'))) < 2:
    assert first.poll() is None, first.communicate()[1]
    time.sleep(0.05)
  second = start(1)
  logs = [process.communicate()[1] for process in (first, second)]
  assert first.returncode == second.returncode == 0, logs
  assert f'waiting for {ROWS} images of host 1' in logs[0]
  assert 'host 1 is done; host 0 writes' in logs[1]
  arrays = np.load(tmp_path / 'samples.npz')
  np.testing.assert_array_equal(arrays['seeds'], np.arange(2 * ROWS + 10))
  assert close(arrays['images'][:64], np.load(drawn / 'samples.npz')['images'])
  # Each host's process is the same function.
  assert (arrays['images'][ROWS:].std(axis=(1, 2, 3)) > 0).all()
  assert manifest(tmp_path)['hosts'] == 2


class Painter:
  """Images of one grey, their seed mod 256; it may be killed at a seed."""

  def __init__(self, fails_at=None):
    self.seeds = []
    self._fails_at = fails_at

  def __call__(self, seeds, labels):
    for batch in np.array_split(seeds, 4):
      if self._fails_at in batch:
        raise KeyboardInterrupt
      self.seeds.extend(batch)
      grey = (batch % 256).astype(np.uint8)
      yield np.tile(grey[:, None, None, None], (1, 2, 2, 3))


def make_job(outdir, painter, number, identity=None, **kwargs):
  seeds = np.arange(5, 5 + number)
  return sample.Job(
      str(outdir), painter, seeds, seeds % 10,
      identity=identity or {'steps': 10}, **kwargs,
  )  # fmt: skip


def test_draws_nothing_twice(tmp_path):
  number = 3 * ROWS + 20
  killed, painter = Painter(fails_at=2 * ROWS + 100), Painter()
  with pytest.raises(KeyboardInterrupt):
    make_job(tmp_path, killed, number).draw()
  job = make_job(tmp_path, painter, number)
  assert not job.is_finished()
  job.begin()
  job.draw()
  job.wait()
  job.assemble()
  job.finish({'step': 4})
  assert sorted(killed.seeds[: 2 * ROWS] + painter.seeds) == list(job.seeds)
  arrays = np.load(tmp_path / 'samples.npz')
  assert set(arrays) == {'images', 'seeds'}
  np.testing.assert_array_equal(arrays['seeds'], job.seeds)
  np.testing.assert_array_equal(
      arrays['images'], np.concatenate(list(Painter()(job.seeds, None)))
  )
  assert make_job(tmp_path, painter, number).is_finished()


def test_hosts_draw_each_part_once(tmp_path):
  painters = [Painter() for _ in range(3)]
  for host, painter in enumerate(painters):
    make_job(tmp_path, painter, 4 * ROWS + 1, host=host, hosts=3).draw()
  assert [len(p.seeds) for p in painters] == [2 * ROWS, ROWS + 1, ROWS]


def test_refuses_a_folder_of_another_job(tmp_path):
  message = '--outdir .* holds another job: steps 10 -> 20; use another'
  job = make_job(tmp_path, Painter(), 3, {'steps': 10, 'eta': 0.0})
  job.begin()
  job.draw()
  with pytest.raises(UserError, match=message):
    make_job(tmp_path, Painter(), 3, {'steps': 20, 'eta': 0.0})
  job.assemble()
  job.finish({})
  job.clear()
  with pytest.raises(UserError, match=message):
    make_job(tmp_path, Painter(), 3, {'steps': 20, 'eta': 0.0})
  (tmp_path / 'manifest.json').write_text('{')
  with pytest.raises(UserError, match=r'manifest.json is damaged: use another'):
    make_job(tmp_path, Painter(), 3)


@pytest.mark.parametrize(
    'args, message',
    [
        (['--sampler=euler'], "--sampler is 'euler', expected one of"),
        (['--steps=41'], '--steps is 41, expected 1 to 40'),
        (['--seeds=5-1'], "--seeds is '5-1', expected"),
        (['--batch_size=0'], '--batch_size is 0, expected 1 or more'),
        (['--checkpoint=3'], 'has the steps: 2, 4'),
        (['--checkpoint=newest'], 'expected latest, a step, or a path such as'),
        (['--checkpoint=no/ckpt-4'], 'but there is no no/ckpt-4.index'),
        (['--weights=best'], "--weights is 'best', expected ema"),
        (['--precision=int8'], "--precision is 'int8', expected one of"),
        (['--outdir=/dev/null/x'], '--outdir /dev/null/x cannot be written'),
    ],
)
def test_refuses_in_one_line(workdir, tmp_path, args, message):
  flags = [f'--workdir={workdir}', f'--outdir={tmp_path}', *args]
  assert message in refused(*flags)


def test_refuses_a_damaged_checkpoint_by_its_path(workdir, tmp_path):
  for file in workdir.glob('checkpoints/ckpt-4.*'):
    shutil.copy(file, tmp_path)
  path = str(tmp_path / 'ckpt-4')
  assert checkpoint.find(str(workdir), path) == path
  (data,) = tmp_path.glob('*.data-*')
  data.write_bytes(data.read_bytes()[:-99])
  with pytest.raises(UserError, match=r'ckpt-4 is damaged'):
    checkpoint.find(str(workdir), path)


def refused(*flags):
  done = run_program('ddpm.sample', *flags)
  assert done.returncode == 1
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('ddpm: error: ')
  return line


def test_refuses_an_empty_workdir(tmp_path):
  flags = [f'--workdir={tmp_path}', f'--outdir={tmp_path / "out"}']
  assert 'has no checkpoints: train first' in refused(*flags)


def test_parse_seeds():
  assert list(sample.parse_seeds('3,7,20-22')) == [3, 7, 20, 21, 22]
  assert len(sample.parse_seeds('0-49999')) == 50_000
  last = 2**63 - 1
  assert list(sample.parse_seeds(f'{last}')) == [last]
  for text in ('', '1-', 'a', '-1', '3,3', '0-5,5', f'0-{last}', f'{last + 1}'):
    with pytest.raises(UserError):
      sample.parse_seeds(text)


@pytest.mark.parametrize(
    'text',
    ['{', '[]', '{}', '{"cluster": {"worker": ["a"]}, "task": {"index": 1}}',
     '{"cluster": {"chief": ["a"], "worker": ["b"]}, "task": {"index": 0}}'],
)  # fmt: skip
def test_refuses_a_tf_config_that_names_no_host(monkeypatch, text):
  monkeypatch.setenv('TF_CONFIG', text)
  with pytest.raises(UserError, match=r'TF_CONFIG is .*, expected such as'):
    sample.this_host()


def test_this_host(monkeypatch):
  assert sample.this_host() == (0, 1)
  config = {'cluster': {'worker': ['a', 'b', 'c']}, 'task': {'index': 2}}
  monkeypatch.setenv('TF_CONFIG', json.dumps(config))
  assert sample.this_host() == (2, 3)
  assert 'TF_CONFIG' not in os.environ


def test_durations():
  assert [sample.duration(s) for s in (4.4, 59.9, 89, 4380)] == [
      '4 s', '1 min', '1 min', '1 h 13 min',
  ]  # fmt: skip
