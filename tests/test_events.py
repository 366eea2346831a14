"""What events.jsonl says of a process that trained."""

import json

from absl import logging
import pytest

from ddpm.run import events
from ddpm.runtime.errors import Interrupted
from ddpm.runtime.errors import UserError


def rows(workdir):
  lines = (workdir / 'events.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_start_a_warning_and_an_end(tmp_path):
  with events.recorded(str(tmp_path), writes=True) as record:
    record('start', step=3)
    logging.warning('it is %s', 'warm')
    logging.info('nothing')
    # What happened so far is known before the end.
    assert [row['event'] for row in rows(tmp_path)] == ['start', 'warning']
  logging.warning('after the end')
  start, warning, end = rows(tmp_path)
  assert start['step'] == 3 and warning['message'] == 'it is warm'
  assert end['event'] == 'end'
  assert 0 <= start['seconds'] <= warning['seconds'] <= end['seconds'] < 60
  assert end['time'].endswith('+00:00')


@pytest.mark.parametrize(
    'error, event',
    [
        (UserError('no disk'), 'error'),
        (RuntimeError('no disk'), 'error'),
        (Interrupted('no disk'), 'interrupted'),
        (KeyboardInterrupt('no disk'), 'interrupted'),
    ],
)
def test_how_it_fails(tmp_path, error, event):
  with events.recorded(str(tmp_path), writes=True):
    pass
  with (
      pytest.raises(type(error)),
      events.recorded(str(tmp_path), writes=True),
  ):
    raise error
  first, last = rows(tmp_path)
  assert first['event'] == 'end'
  assert last['event'] == event and last['message'] == 'no disk'


def test_only_the_chief_writes(tmp_path):
  with events.recorded(str(tmp_path), writes=False) as record:
    record('start', step=0)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
  (tmp_path / 'file').touch()
  with events.recorded(str(tmp_path / 'file'), writes=True) as record:
    record('start', step=0)
