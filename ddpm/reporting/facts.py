"""What a workdir says of its run, without drawing anything."""

import dataclasses
import json
import os
import re

from ml_collections import config_dict
import tensorflow as tf

from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.run import defaults
from ddpm.runtime import files
from ddpm.runtime.errors import reading
from ddpm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Facts:
  """A run as its workdir tells it.

  Attributes:
    workdir: as it was named.
    config: the run's.
    data: dict of name, images and digest; empty if not recorded.
    metrics: rows of metrics.jsonl.
    scores: rows of evaluation.jsonl.
    events: rows of events.jsonl.
    grids: dict of step -> path of the grid drawn there, in order.
    saved: step of the newest checkpoint; 0 for none.
    unreadable: what was left out, in words.
  """

  workdir: str
  config: config_dict.ConfigDict
  data: dict
  metrics: list
  scores: list
  events: list
  grids: dict
  saved: int
  unreadable: list

  @property
  def name(self):
    """The workdir's last part."""
    return os.path.basename(self.workdir.rstrip('/')) or self.workdir

  @property
  def step(self):
    """The last step that anything is known of; 0 for none."""
    steps = [row.get('step') for row in [*self.metrics, *self.events]]
    # The last steps of a run need not be logged.
    known = [step for step in steps if isinstance(step, int)]
    return max([self.saved, *known])

  @property
  def starts(self):
    """The rows of events that say how a process started."""
    return [row for row in self.events if row['event'] == 'start']


def read(workdir):
  """Reads a workdir, as far as it can be read.

  Args:
    workdir: of a run of any version, which may still be training.

  Returns:
    `Facts`.

  Raises:
    UserError: it has no config.
  """
  config = config_lib.load(workdir)
  if config is None:
    raise UserError(
        f'{workdir} has no config.json, expected the workdir of a run: train'
        f' first, with python -m ddpm.main --config=... --workdir={workdir}'
    )
  unreadable = []
  rows = {
      name: _json_lines(os.path.join(workdir, f'{name}.jsonl'), unreadable)
      for name in ('metrics', 'evaluation', 'events')
  }
  facts = Facts(
      workdir=workdir,
      config=config,
      data=_data(workdir, unreadable),
      metrics=[r for r in rows['metrics'] if isinstance(r.get('step'), int)],
      scores=[r for r in rows['evaluation'] if _is_score(r)],
      events=[r for r in rows['events'] if {'event', 'seconds'} <= set(r)],
      grids=_grids(workdir),
      saved=checkpoint.newest_step(workdir),
      unreadable=unreadable,
  )
  last, drawn = config.train.num_steps, os.path.join(workdir, 'grid.png')
  if facts.step >= last and tf.io.gfile.exists(drawn):
    facts.grids.setdefault(last, drawn)
  return facts


def stamp(workdir):
  """A string that changes when there is more to report."""
  names = ['config.json', 'metrics.jsonl', 'evaluation.jsonl', 'events.jsonl']
  stamps = [files.stamp(os.path.join(workdir, name)) for name in names]
  return ' '.join([*stamps, *_grids(workdir).values()])


def differences(configs):
  """Settings that differ between configs.

  Args:
    configs: list of ConfigDicts.

  Returns:
    Dict of a setting's full name -> list of its values, one per config.
  """
  settings = [config_lib.flatten(config) for config in configs]
  names = dict.fromkeys(name for flat in settings for name in flat)
  values = {name: [flat.get(name) for flat in settings] for name in names}
  return {n: v for n, v in values.items() if any(x != v[0] for x in v)}


def overrides(config):
  """Settings of a config that are not `default.py`'s.

  Returns:
    Dict of a setting's full name -> [default, value].
  """
  return differences([defaults.get_config(), config])


def _json_lines(path, unreadable):
  """The objects of a file, one per line; none if it is missing."""
  if not tf.io.gfile.exists(path):
    return []
  with reading(path), tf.io.gfile.GFile(path, 'rb') as f:
    lines = f.read().splitlines()
  rows = []
  for line in lines:
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict):
      rows.append(row)
  if missing := len(lines) - len(rows):
    lines = 'line' if missing == 1 else 'lines'
    # A line that is being written, or that a crash cut short.
    unreadable.append(f'{missing} {lines} of {os.path.basename(path)}')
  return rows


def _is_score(row):
  details = row.get('details')
  return isinstance(details, dict) and isinstance(details.get('step'), int)


def _data(workdir, unreadable):
  path = os.path.join(workdir, 'data.json')
  if not tf.io.gfile.exists(path):
    return {}
  try:
    with tf.io.gfile.GFile(path) as f:
      data = json.loads(f.read())
    return {key: data[key] for key in ('name', 'images', 'digest')}
  except (ValueError, TypeError, KeyError):
    unreadable.append('data.json')
    return {}


def _grids(workdir):
  """Step -> path of WORKDIR/samples/step_*.png."""
  paths = files.matching(os.path.join(workdir, 'samples'), 'step_*.png')
  found = {
      path: re.fullmatch(r'step_(\d+)\.png', os.path.basename(path))
      for path in paths
  }
  return {int(match[1]): path for path, match in found.items() if match}
