"""A folder's worth of images: drawn once, by one process or by several."""

import os
import socket

import numpy as np
from PIL import Image
from PIL import ImageSequence
import pytest

from ddpm.runtime import shards
from ddpm.runtime.errors import UserError
from ddpm.sampling import job as job_lib

ROWS = shards.ROWS


class Painter:
  """Images of one grey, their seed mod 256; it may be killed at a seed."""

  def __init__(self, fails_at=None):
    self.seeds = []
    self._fails_at = fails_at

  def __call__(self, seeds, labels=None):
    for batch in np.array_split(seeds, 4):
      if self._fails_at in batch:
        raise KeyboardInterrupt
      self.seeds.extend(batch)
      grey = (batch % 256).astype(np.uint8)
      yield np.tile(grey[:, None, None, None], (1, 2, 2, 3))


def make_job(outdir, painter, number, identity=None, **kwargs):
  columns = {'seeds': np.arange(5, 5 + number)}
  return job_lib.Job(
      str(outdir), painter, columns, identity=identity or {'steps': 10},
      **kwargs,
  )  # fmt: skip


def refuses(message, job):
  with pytest.raises(UserError, match=message), job.locked():
    pass


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
  seeds = np.arange(5, 5 + number)
  assert sorted(killed.seeds[: 2 * ROWS] + painter.seeds) == list(seeds)
  arrays = np.load(tmp_path / 'samples.npz')
  assert set(arrays) == {'images', 'seeds'}
  np.testing.assert_array_equal(arrays['seeds'], seeds)
  np.testing.assert_array_equal(
      arrays['images'], np.concatenate(list(Painter()(seeds)))
  )
  assert make_job(tmp_path, painter, number).is_finished()


def test_hosts_draw_each_part_once(tmp_path):
  painters = [Painter() for _ in range(3)]
  for host, painter in enumerate(painters):
    make_job(tmp_path, painter, 4 * ROWS + 1, host=host, hosts=3).draw()
  assert [len(p.seeds) for p in painters] == [2 * ROWS, ROWS + 1, ROWS]


def test_refuses_a_folder_of_another_job(tmp_path):
  message = '^outdir .* holds another job: steps 10 -> 20; use another'
  job = make_job(tmp_path, Painter(), 3, {'steps': 10, 'eta': 0.0})
  job.begin()
  job.draw()
  refuses(message, make_job(tmp_path, Painter(), 3, {'steps': 20, 'eta': 0.0}))
  job.assemble()
  job.finish({})
  job.clear()
  refuses(message, make_job(tmp_path, Painter(), 3, {'steps': 20, 'eta': 0.0}))
  (tmp_path / 'manifest.json').write_text('{')
  message = r'manifest.json is damaged: use another'
  refuses(message, make_job(tmp_path, Painter(), 3))


def test_of_two_at_once_the_second_is_refused(tmp_path):
  """But the hosts of one job are several."""
  first = f'process {os.getpid()} on {socket.gethostname()}'
  with make_job(tmp_path, Painter(), 3, hosts=2).locked():
    refuses(
        f'^outdir {tmp_path} is in use by {first}: .* use another outdir$',
        make_job(tmp_path, Painter(), 3),
    )
    refuses(
        f'^outdir {tmp_path} is in use by {first}',
        make_job(tmp_path, Painter(), 3, {'steps': 20}),
    )
    with make_job(tmp_path, Painter(), 3, host=1, hosts=2).locked():
      pass
  with make_job(tmp_path, Painter(), 3).locked():
    pass


def test_another_job_that_ended_while_this_one_started_is_seen(tmp_path):
  late = make_job(tmp_path, Painter(), 3, {'steps': 20})
  job = make_job(tmp_path, Painter(), 3)
  with job.locked():
    job.begin()
    job.draw()
    job.assemble()
    job.finish({})
  job.clear()
  assert not (tmp_path / 'parts').exists()
  refuses('holds another job', late)
  assert not (tmp_path / 'parts').exists()


@pytest.mark.parametrize(
    'name', ['samples.npz', 'grid.png', 'animation.png', 'png']
)
def test_files_of_others_are_not_overwritten(tmp_path, name):
  (tmp_path / name).write_text('mine')
  message = f'^outdir {tmp_path} holds {name} of something else: use another'
  refuses(message, make_job(tmp_path, Painter(), 3))
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_workdir_is_no_outdir(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  message = f'holds a run, .* use another one, such as {tmp_path}/out$'
  refuses(message, make_job(tmp_path, Painter(), 3))


def test_a_film_is_of_the_grid(tmp_path):
  """And what the images were made of is the first in both."""

  def draw(seeds):
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None]
    yield np.tile(10 * frames, (len(seeds), 1, 2, 2, 1))

  given = np.full([2, 2, 1], 200, np.uint8)
  job = job_lib.Job(
      str(tmp_path), draw, {'seeds': np.arange(3)},
      identity={'animation': True}, given=given, grid_columns=4,
  )  # fmt: skip
  job.begin()
  job.draw()
  job.assemble()
  images = np.load(tmp_path / 'samples.npz')['images']
  np.testing.assert_array_equal(images, np.full([3, 2, 2, 1], 40))
  with Image.open(tmp_path / 'animation.png') as film:
    assert film.n_frames == 5 and film.size == (18, 6)
    for k, frame in enumerate(ImageSequence.Iterator(film)):
      assert [frame.getpixel((x, 2)) for x in (2, 6, 10)] == [
          200, 10 * k, 10 * k,
      ]  # fmt: skip
  with Image.open(tmp_path / 'grid.png') as grid, \
      Image.open(tmp_path / 'animation.png') as film:
    film.seek(4)
    np.testing.assert_array_equal(np.asarray(grid), np.asarray(film))
