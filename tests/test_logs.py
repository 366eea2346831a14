"""What a run leaves for people to look at."""

import json

import numpy as np
import pytest
from support import tiny_config
import tensorflow as tf

from ddpm.run import logs
from ddpm.runtime import files
from ddpm.runtime import png
from ddpm.runtime.errors import UserError


def open_writers(path, first_step=0):
  config = tiny_config(**{'train.num_steps': 10})
  return logs.Writers(str(path), config, first_step=first_step, writes=True)


def test_scalars_read_back_equal_and_no_step_twice(tmp_path):
  loss = float(np.float32(0.1) / 3)
  log = open_writers(tmp_path)
  for step in (1, 2, 3):
    log.scalars(step, {'loss': loss * step, 'images_per_second': 1.5})
  log.close()
  path = tmp_path / 'metrics.jsonl'
  # Killed in the middle of a line, after the checkpoint of step 2.
  path.write_text(path.read_text() + '{"step": 4, "lo')
  log = open_writers(tmp_path, first_step=2)
  log.scalars(3, {'loss': loss, 'images_per_second': 1.5})
  log.close()
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['step'] for row in rows] == [1, 2, 3]
  assert [row['loss'] for row in rows] == [loss, 2 * loss, loss]


def test_an_estimate_of_the_time_left(tmp_path, caplog):
  caplog.set_level('INFO', 'absl')
  log = open_writers(tmp_path)
  log.estimate(4, 2.0, [])
  log.estimate(4, 0.1, ['a cold', 'no AVX2'])
  log.close()
  assert caplog.messages == [
      'about 24 s left, at 2.0 images/s',
      'about 8 min left, at 0.1 images/s; slowed down by: a cold, no AVX2',
  ]


def test_a_line_tells_what_a_bar_does(tmp_path, caplog):
  caplog.set_level('INFO', 'absl')
  log = open_writers(tmp_path)
  metrics = {'loss': 0.12345, 'images_per_second': 40.0}
  log.scalars(2, metrics)
  log.scalars(3, metrics, saved=2)
  log.close()
  first, second = caplog.messages
  assert first == 'step 2  loss 0.1235  40.0 images/s  saved nothing'
  assert second.startswith('step 3  loss 0.1235  40.0 images/s  saved 2  ')
  assert second.endswith(' left')


def test_images_go_to_their_files_and_to_tensorboard(tmp_path):
  log = open_writers(tmp_path)
  images = np.zeros([4, 3, 3, 1], np.uint8)
  log.images(
      4, lambda: images, str(tmp_path / 'grid.png'), str(tmp_path / '4.png')
  )
  log.images(5, lambda: None, str(tmp_path / 'stopped.png'))
  log.close()
  assert (tmp_path / 'grid.png').exists() and (tmp_path / '4.png').exists()
  assert not (tmp_path / 'stopped.png').exists()
  (file,) = (tmp_path / 'tensorboard').iterdir()
  assert b'\x89PNG' in file.read_bytes()


def steps_on_board(workdir):
  """The steps of each tag, in the order in which they were written."""
  paths = sorted(
      tf.io.gfile.glob(f'{workdir}/tensorboard/*'),
      key=lambda path: int(path.split('.')[-2]),  # they are of one second
  )
  found = {}
  for record in tf.data.TFRecordDataset(paths):
    event = tf.compat.v1.Event.FromString(record.numpy())
    for value in event.summary.value:
      found.setdefault(value.tag, []).append(event.step)
  return found


def test_a_bucket_gets_every_line_and_event_with_the_checkpoints(
    tmp_path, monkeypatch
):
  """Buckets replace whole files: a file per line would be uploaded n times."""
  workdir = f'ram://{tmp_path.name}'
  path = f'{workdir}/metrics.jsonl'
  uploaded = []
  write = files.write_file
  monkeypatch.setattr(
      files, 'write_file',
      lambda path, data: uploaded.append(len(data)) or write(path, data),
  )  # fmt: skip
  log = open_writers(workdir)
  for step in range(1, 401):
    log.scalars(step, {'loss': 0.5, 'images_per_second': 1.0})
    if step % 100 == 0:
      log.upload()
  log.images(400, lambda: np.zeros([4, 3, 3, 1], np.uint8))
  log.close()
  rows = [json.loads(line) for line in tf.io.gfile.GFile(path)]
  assert [row['step'] for row in rows] == list(range(1, 401))
  # With each checkpoint, and at the end.
  assert len(uploaded) == 5 and uploaded[-1] == tf.io.gfile.stat(path).length
  steps = steps_on_board(workdir)
  assert steps['loss'] == list(range(1, 401)) and steps['samples'] == [400]
  assert len(tf.io.gfile.listdir(f'{workdir}/tensorboard')) == 5
  # A start from the checkpoint of step 300.
  log = open_writers(workdir, first_step=300)
  log.scalars(301, {'loss': 0.5, 'images_per_second': 1.0})
  log.close()
  rows = [json.loads(line) for line in tf.io.gfile.GFile(path)]
  assert [row['step'] for row in rows] == list(range(1, 302))
  steps = steps_on_board(workdir)
  assert steps['loss'] == list(range(1, 302)) and 'samples' not in steps


def test_an_upload_that_fails_is_told(tmp_path, monkeypatch):
  log = open_writers(f'ram://{tmp_path.name}')

  def fail(path, data):
    raise UserError(f'{path} cannot be written')

  monkeypatch.setattr(files, 'write_file', fail)
  log.upload()
  with pytest.raises(UserError, match=r'metrics\.jsonl cannot be written'):
    log.upload()


def test_grid():
  images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
  picture = png.grid(np.tile(images, [1, 2, 2, 1]))
  assert picture.shape == (2 * 4 + 2, 3 * 4 + 2, 1)
  assert picture[2, 2] == 1 and picture[2, 10] == 3 and picture[6, 6] == 5
  assert picture[6, 10] == 0 and picture[0].max() == 0
  assert (picture > 0).sum() == 5 * 4


def test_a_silent_worker_writes_nothing(tmp_path):
  log = logs.Writers(str(tmp_path), tiny_config(), first_step=0, writes=False)
  log.estimate(1, 1.0, [])
  log.scalars(1, {'loss': 1.0})
  log.images(1, None, str(tmp_path / 'x.png'))
  log.close()
  assert not list(tmp_path.iterdir())
