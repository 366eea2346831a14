"""The sampler's jobs: by one process, by a second one, by several hosts."""

import json
import re
import shutil
import signal

from absl import flags as absl_flags
from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest
from support import error_line
from support import refused
from support import run_fork
from support import start_program
from support import TINY_WITHOUT_XLA
from support import wait_for
import tensorflow as tf

from ddpm import sample
from ddpm.metrics import sources
from ddpm.run import checkpoint
from ddpm.run import lock
from ddpm.runtime import cores
from ddpm.runtime import npz
from ddpm.runtime import shards
from ddpm.runtime.errors import UserError

ROWS = shards.ROWS


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of 4 steps, with classes; it drew a grid at its end."""
  path = tmp_path_factory.mktemp('run')
  done = run_fork(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={path}',
      '--config.train.num_steps=4', '--config.model.num_classes=10',
      '--config.diffusion.num_timesteps=40',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return path


def draw(workdir, outdir, *flags):
  done = run_fork(
      'ddpm.sample', f'--workdir={workdir}', f'--outdir={outdir}', *flags
  )
  assert done.returncode == 0, done.stderr
  return done.stderr


def parts_in(outdir):
  return list(outdir.glob('parts/rows_*.npz'))


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
  assert told['precision'] == 'tf32' and told['num_images'] == 64
  assert told['config']['train']['batch_size'] == 8
  assert len(told['weights_digest']) == 16
  assert len(told['devices']) == cores.count()


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
  config['distribute'] = {'strategy': 'one_device', 'virtual_devices': 3}
  (two / 'config.json').write_text(json.dumps(config))
  draw(
      two, tmp_path / 'out', '--seeds=3,60-63', '--labels=3,0,1,2,3', '--png',
      '--batch_size=2', f'--checkpoint={workdir}/checkpoints/ckpt-4.index',
  )  # fmt: skip
  arrays = np.load(tmp_path / 'out' / 'samples.npz')
  assert list(arrays['seeds']) == [3, 60, 61, 62, 63]
  whole = np.load(drawn / 'samples.npz')['images']
  assert close(whole[arrays['seeds']], arrays['images'])
  assert len(manifest(tmp_path / 'out')['devices']) == 3
  files = sorted((tmp_path / 'out' / 'png').iterdir())
  assert [f.name for f in files][:2] == ['00000003.png', '00000060.png']
  for file, image in zip(files, arrays['images']):
    pixels = tf.io.decode_png(tf.io.read_file(str(file))).numpy()
    np.testing.assert_array_equal(pixels, image)


def test_precision(workdir, tmp_path):
  flags = ['--precision=mixed_bfloat16', '--seeds=0-3']
  draw(workdir, tmp_path, *flags)
  assert manifest(tmp_path)['precision'] == 'mixed_bfloat16'
  assert manifest(tmp_path)['config']['precision'] == 'tf32'


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
  kept = wait_for(lambda: parts_in(tmp_path), 'part', process=process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  # What a part holds is taken as it is.
  images = npz.read(str(kept[0]))['images']
  npz.write(str(kept[0]), {'images': np.full_like(images, 7)})
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
  wait_for(lambda: len(parts_in(tmp_path)) == 2, 'two parts', process=first)
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


def picture(path, pixels):
  Image.fromarray(pixels).save(path)
  return str(path)


def test_paints_a_part_of_a_picture_and_films_it(workdir, tmp_path):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, [28, 28], np.uint8)
  mask = np.zeros([28, 28], np.uint8)
  mask[:, 14:] = 255
  out = tmp_path / 'out'
  flags = [
      f'--inpaint={picture(tmp_path / "a.png", pixels)}',
      f'--mask={picture(tmp_path / "mask.png", mask)}',
  ]
  draw(workdir, out, *flags, '--seeds=0-2', '--film', '--steps=4')
  assert {path.name for path in out.iterdir()} == {
      'samples.npz', 'grid.png', 'animation.png', 'manifest.json',
  }  # fmt: skip
  images = np.load(out / 'samples.npz')['images'][..., 0]
  assert np.abs(images[:, :, :14].astype(int) - pixels[:, :14]).max() == 0
  assert images[:, :, 14:].std(axis=0).max() > 0
  with Image.open(out / 'animation.png') as film:
    assert film.n_frames == 5
  told = manifest(out)
  assert told['inpaint'].endswith('a.png') and told['animation'] is True
  # The picture is the grid's first image, and a part of what the job is.
  grid = np.asarray(Image.open(out / 'grid.png'))
  np.testing.assert_array_equal(grid[2:30, 2:30], pixels)
  picture(tmp_path / 'a.png', pixels[::-1])
  assert 'holds another job: pictures_digest' in refused(
      'ddpm.sample', f'--workdir={workdir}', f'--outdir={out}', *flags,
      '--seeds=0-2', '--film', '--steps=4',
  )  # fmt: skip


def test_noises_a_picture_and_denoises_it(workdir, tmp_path):
  path = picture(tmp_path / 'a.png', np.full([56, 56], 90, np.uint8))
  draw(
      workdir, tmp_path / 'out', f'--denoise_from={path}', '--at=0.25',
      '--seeds=0-3', '--steps=8',
  )  # fmt: skip
  told = manifest(tmp_path / 'out')
  assert told['strength'] == 0.25 and told['steps'] == 8
  assert np.load(tmp_path / 'out' / 'samples.npz')['images'].shape[0] == 4
  assert np.asarray(Image.open(tmp_path / 'out' / 'grid.png')).shape == (62, 92)


def test_goes_from_one_image_to_another(workdir, tmp_path):
  flags = ['--sampler=dpmpp_2m', '--labels=4']
  draw(workdir, tmp_path / 'a', '--interpolate=3,7,5', '--png', *flags)
  draw(workdir, tmp_path / 'b', '--seeds=3,7', *flags)
  # The config's steps and noise are of its own sampler.
  told = manifest(tmp_path / 'a')
  assert told['steps'] == 25 and told['eta'] == 0.0
  way = np.load(tmp_path / 'a' / 'samples.npz')
  ends = np.load(tmp_path / 'b' / 'samples.npz')['images']
  assert close(way['images'][[0, -1]], ends)
  np.testing.assert_array_equal(way['seeds'], [[3, 7]] * 5)
  np.testing.assert_array_equal(way['labels'], [4] * 5)
  np.testing.assert_allclose(way['fractions'], [0, 0.25, 0.5, 0.75, 1])
  assert np.asarray(Image.open(tmp_path / 'a' / 'grid.png')).shape[0] == 32
  names = sorted(path.name for path in (tmp_path / 'a' / 'png').iterdir())
  assert names[0] == '00000000.png' and len(names) == 5


# Arguments that are wrong, and a part of the line that says so.
ERRORS = [
    (['--sampler=euler'], "--sampler is 'euler', expected one of"),
    (['--steps=41'], '--steps is 41, expected at most 40'),
    (['--eta=0.5'], '--eta is 0.5, which only ddim and dpmpp_2m take'),
    (['--seeds=5-1'], "--seeds is '5-1', expected"),
    (['--batch_size=0'], '--batch_size is 0, expected 1 or more'),
    (['--checkpoint=3'], 'has the steps: 2, 4'),
    (['--checkpoint=newest'], 'expected latest, a step, or a path such as'),
    (['--checkpoint=no/ckpt-4'], 'but there is no no/ckpt-4.index'),
    (['--weights=best'], "--weights is 'best', expected ema"),
    (['--precision=int8'], "--precision is 'int8', expected one of"),
    (['--outdir=/dev/null/x'], '/dev/null/x cannot be written'),
    (['--interpolate=1,2,3'], 'needs a sampler that adds no noise, but'),
    (['--denoise_from=no.png'], 'no.png cannot be read'),
    (['--film', '--seeds=0-64'], '--animation takes at most 64 images'),
]


def test_refuses_in_one_line(workdir, tmp_path):
  flags = [f'--workdir={workdir}', f'--outdir={tmp_path}']
  for args, message in ERRORS:
    done = run_fork('ddpm.sample', *flags, *args)
    assert message in error_line(done), args


def test_an_outdir_that_is_others_is_left_as_it_is(workdir, drawn, tmp_path):
  grid = (workdir / 'grid.png').read_bytes()
  done = run_fork('ddpm.sample', f'--workdir={workdir}', f'--outdir={workdir}')
  assert f'--outdir {workdir} holds a run, ' in error_line(done)
  assert (workdir / 'grid.png').read_bytes() == grid
  assert not (workdir / 'parts').exists()
  (tmp_path / 'parts').mkdir()
  path = str(tmp_path / 'parts' / 'lock_0')
  with lock.held(str(tmp_path), kind='outdir', path=path):
    done = run_fork(
        'ddpm.sample', f'--workdir={workdir}', f'--outdir={tmp_path}'
    )
  assert f'--outdir {tmp_path} is in use by process ' in error_line(done)
  assert not (tmp_path / 'samples.npz').exists()


def test_refuses_a_damaged_checkpoint_by_its_path(workdir, tmp_path):
  for file in workdir.glob('checkpoints/ckpt-4.*'):
    shutil.copy(file, tmp_path)
  path = str(tmp_path / 'ckpt-4')
  assert checkpoint.find(str(workdir), path) == path
  (data,) = tmp_path.glob('*.data-*')
  data.write_bytes(data.read_bytes()[:-99])
  with pytest.raises(UserError, match=r'ckpt-4 is damaged'):
    checkpoint.find(str(workdir), path)


def test_refuses_an_empty_workdir(tmp_path):
  flags = [f'--workdir={tmp_path}', f'--outdir={tmp_path / "out"}']
  assert 'has no checkpoints: train first' in refused('ddpm.sample', *flags)


@pytest.fixture(scope='module')
def own_flags():
  """The flags of ddpm.sample, defined as at its start."""
  others = set(absl_flags.FLAGS)
  sample.define_flags()
  absl_flags.FLAGS.mark_as_parsed()
  yield
  for name in set(absl_flags.FLAGS) - others:
    delattr(absl_flags.FLAGS, name)


@pytest.mark.parametrize(
    'flags, message',
    [
        ({'strength': 0.3}, '--strength needs --init_image'),
        ({'at': 0.3}, '--strength needs --init_image'),
        ({'strength': 0.0, 'init_image': 'a'},
         '--strength is 0.0, expected more than 0'),
        ({'strength': 1.1, 'init_image': 'a'},
         '--strength is 1.1, expected more than 0'),
        ({'inpaint': 'a'}, '--inpaint and --mask go together'),
        ({'mask': 'a'}, '--inpaint and --mask go together'),
        ({'inpaint': 'a', 'mask': 'b', 'init_image': 'c'},
         'expected one of --init_image and --inpaint'),
        ({'interpolate': '1,2,3', 'seeds': '0-9'}, 'leave out --seeds'),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_together(own_flags, flags, message):
  flags = {'workdir': 'run', 'outdir': 'out'} | flags
  with (
      flagsaver.as_parsed(**{name: str(v) for name, v in flags.items()}),
      pytest.raises(UserError, match=message),
  ):
    sample.check_flags()


def test_parse_interpolation():
  columns = sample.parse_interpolation('3,9,4')
  np.testing.assert_array_equal(columns['seeds'], [[3, 9]] * 4)
  np.testing.assert_allclose(columns['fractions'], [0, 1 / 3, 2 / 3, 1])
  for text in ('3,9', '3,3,5', '3,9,1', '3,9,a', '-1,2,3', f'0,{2**63},3'):
    with pytest.raises(UserError, match='expected two seeds and a number'):
      sample.parse_interpolation(text)


def test_parse_seeds():
  assert list(sample.parse_seeds('3,7,20-22')) == [3, 7, 20, 21, 22]
  assert len(sample.parse_seeds('0-49999')) == 50_000
  last = 2**63 - 1
  assert list(sample.parse_seeds(f'{last}')) == [last]
  for text in ('', '1-', 'a', '-1', '3,3', '0-5,5', f'0-{last}', f'{last + 1}'):
    with pytest.raises(UserError):
      sample.parse_seeds(text)
