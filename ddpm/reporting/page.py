"""Writes a run's report: its facts and drawings as one HTML page.

The page loads nothing, so that it can be sent as it is, and its content policy
says so to the browser. Everything can be read without the script, which adds a
slider, values under the pointer and, if the page is served, refreshing.
"""

import importlib.resources
import math
import os
import shlex
import time

from absl import logging
from etils import epy
import numpy as np

from ddpm.reporting import charts
from ddpm.reporting import facts as facts_lib
from ddpm.reporting import images
from ddpm.run import config as config_lib
from ddpm.runtime import files
from ddpm.runtime import words
from ddpm.runtime.errors import reason

# Training does not wait for it.
with epy.lazy_imports():
  import jinja2
  import markupsafe

# Events of a page; the newest.
_EVENTS = 100

# Events that are a process's last.
_ENDS = ('end', 'interrupted', 'error')

# How the quartiles of the timesteps are called, from little to much noise.
_QUARTILES = [f'loss_q{i}' for i in range(4)]


def write_or_warn(workdir):
  """Writes WORKDIR/report.html with what is there, or warns that it failed."""
  began = time.monotonic()
  path = os.path.join(workdir, 'report.html')
  try:
    write(path, facts_lib.read(workdir))
  except Exception as e:  # The run is well, whatever is wrong with its report.
    logging.warning('no %s: %s', path, reason(e))
    return
  logging.info('wrote %s in %.1f s', path, time.monotonic() - began)


def write(path, facts, **kwargs):
  """Writes a report atomically; arguments as of `render`."""
  files.write_file(path, render(facts, **kwargs).encode())


def render(facts, *, others=(), drawings=None, why_not_drawn='', live=False):
  """The report of a run.

  Args:
    facts: `facts.Facts`.
    others: those of runs to compare it with.
    drawings: `drawings.Drawings`; None for none.
    why_not_drawn: the reason, then.
    live: whether the page is served, and refreshes.

  Returns:
    HTML.
  """
  environment = jinja2.Environment(
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
  )
  environment.filters |= {'value': _value, 'share': _share}
  return environment.from_string(_file('page.html')).render(
      facts=facts,
      style=markupsafe.Markup(_file('page.css')),
      script=markupsafe.Markup(_file('page.js')),
      svg=lambda chart, name: markupsafe.Markup(chart.svg(name)),
      live=live,
      summary=_summary(facts),
      overrides=facts_lib.overrides(facts.config),
      settings=config_lib.flatten(facts.config),
      software=_software(facts),
      curves=_curves(facts),
      scores=_scores(facts),
      floors=_floors(facts),
      grids=images.of_grids(facts.grids),
      drawn=_drawn(drawings) if drawings else {},
      drawings=drawings,
      why_not_drawn=why_not_drawn,
      speed=_speed(facts),
      hours=_hours(facts),
      events=facts.events[-_EVENTS:],
      unended=_unended(facts),
      not_finite=_not_finite(facts),
      skipped=[r['step'] for r in facts.metrics if r.get('skipped_steps')],
      commands=_commands(facts),
      comparison=_comparison([facts, *others]) if others else None,
  )


def _file(name):
  file = importlib.resources.files(__package__).joinpath(name)
  return file.read_text(encoding='utf-8')


def _value(value):
  """A setting or a number, for a table."""
  if isinstance(value, float):
    return f'{value:.6g}'
  return f'{value:,}' if type(value) is int else str(value)


def _share(part, whole):
  return f'{part / whole:.0%}'


def _summary(facts):
  """(term, text) of what matters most."""
  config, last = facts.config, facts.config.train.num_steps
  model, starts = config.model, facts.starts
  height_width = config.data.image_size
  if isinstance(height_width, int):
    height_width = (height_width, height_width)
  size = words.dimensions((*height_width, model.image_channels))
  count = f'{facts.data["images"]:,} images of' if facts.data else 'images of'
  classes = f', {model.num_classes} classes' if model.num_classes else ''
  done = f'step {facts.step:,} of {last:,}'
  rows = [
      ('State', f'finished, {done}' if facts.step >= last else done),
      ('Data', f'{config.data.name}: {count} {size}{classes}'),
      ('Batch', f'{config.train.batch_size:,} images'),
  ]
  if parameters := _last(starts, 'parameters'):
    rows.append(('Parameters', f'{parameters:,}'))
  if devices := _last(starts, 'devices'):
    rows.append(('Devices', devices))
  if (loss := _last(facts.metrics, 'loss')) is not None:
    rows.append(('Last loss', f'{loss:.4g}'))
  return rows


def _last(rows, name):
  """The last value of a field that rows may have, or None."""
  return next((r[name] for r in reversed(rows) if r.get(name)), None)


def _software(facts):
  """Versions of each start that was recorded, but for what never changed."""
  known = ('time', 'seconds', 'event', 'step', 'parameters', 'devices')
  rows = [
      {name: value for name, value in start.items() if name not in known}
      for start in facts.starts
  ]
  return [r for i, r in enumerate(rows) if i == 0 or r != rows[i - 1]]


def _column(rows, name):
  """Values of a field, float64 [N]; NaN where a row has none."""
  values = [row.get(name) for row in rows]
  numbers = (int, float)
  return np.array(
      [v if isinstance(v, numbers) else math.nan for v in values], np.float64
  )


def _chart(rows, title, names, *, logarithmic=False):
  """Chart of fields, {field: label}, of the log; None without values."""
  steps = np.array([row['step'] for row in rows])
  curves = [
      charts.Curve(label, steps, _column(rows, name))
      for name, label in names.items()
  ]
  curves = [c for c in curves if np.isfinite(c.y).any()]
  if not curves:
    return None
  values = np.concatenate([c.y for c in curves])
  positive = bool((values[np.isfinite(values)] > 0).all())
  return charts.Chart(title, 'step', curves, logarithmic and positive)


def _curves(facts):
  rows = facts.metrics
  quartiles = ('least noise', 'second quarter', 'third quarter', 'most noise')
  found = [
      _chart(rows, 'Loss', {'loss': 'loss'}, logarithmic=True),
      _chart(
          rows,
          'Loss by quarter of the noise levels',
          dict(zip(_QUARTILES, quartiles)),
          logarithmic=True,
      ),
      _chart(rows, 'Gradient norm', {'gradient_norm': 'gradient norm'}),
      _chart(rows, 'Learning rate', {'learning_rate': 'learning rate'}),
  ]
  return [chart for chart in found if chart]


def _settings_of_score(details):
  """What a score was measured with, in words."""
  text = '{weights}, {sampler} with {steps} steps'.format(
      **dict.fromkeys(('weights', 'sampler', 'steps'), '?') | details
  )
  for name, plain in (('eta', 0.0), ('guidance', 1.0)):
    if details.get(name, plain) != plain:
      text += f', {name} {details[name]:g}'
  return f'{text}, against {details.get("data")} {details.get("split")}'


def _numbers(row):
  """Scores of a row that are numbers, by name."""
  numbers = (int, float)
  return {
      name: value
      for name, value in row.items()
      if name != 'details' and isinstance(value, numbers)
  }


def _floors(facts):
  """(name, settings, step, value, floor) of the newest scores."""
  newest = {}
  for row in sorted(facts.scores, key=lambda r: r['details']['step']):
    details = row['details']
    settings, floor = _settings_of_score(details), details.get('floor', {})
    for name, value in _numbers(row).items():
      newest[name, settings] = (
          name, settings, details['step'], value, floor.get(name)
      )  # fmt: skip
  return list(newest.values())


def _scores(facts):
  """Charts of the scores that were measured at several steps."""
  points = {}
  for row in sorted(facts.scores, key=lambda r: r['details']['step']):
    details = row['details']
    for name, value in _numbers(row).items():
      if not ('_stderr' in name or '_std' in name):  # How sure another is.
        curves = points.setdefault(name, {})
        curve = curves.setdefault(_settings_of_score(details), [])
        floor = details.get('floor', {}).get(name)
        curve.append((details['step'], value, floor))
  found = []
  for name, curves in points.items():
    lines = []
    for label, curve in curves.items():
      steps, values, floors = zip(*curve)
      lines.append(
          charts.Curve(
              label, np.array(steps), np.array(values, float), floors[-1]
          )
      )
    if max(len(line.x) for line in lines) > 1:
      found.append(charts.Chart(name, 'step', lines))
  return found


def _drawn(drawings):
  """Pictures of what was drawn, by the name of their section."""
  d = drawings
  found = {
      'frames': images.of_frames(
          d.frames, 'Animation: noise turns into samples.'
      ),
      'process': images.of_pixels(
          d.process,
          'Four rows; in each, noise on the left turns into a sample on the'
          ' right.',
      ),
      'between': images.of_pixels(
          d.between,
          "Three rows; in each, one seed's sample on the left turns into"
          " another's on the right.",
      ),
  }
  if d.nearest is not None:
    distances = ', '.join(f'{distance:.3f}' for distance in d.distances)
    found['nearest'] = images.of_pixels(
        d.nearest,
        'Samples above, and the nearest training image below each. Distances'
        f' from left to right: {distances}.',
    )
  if d.classes is not None:
    found['classes'] = images.of_pixels(
        d.classes,
        f'{d.num_classes} rows, one for each class; the columns share seeds.',
    )
  return found


def _speed(facts):
  return _chart(
      facts.metrics, 'Throughput', {'images_per_second': 'images per second'}
  )


def _hours(facts):
  """(what, seconds) that a run took, and the sum; None if it is not known."""
  batch, before, training = facts.config.train.batch_size, 0, 0.0
  for row in facts.metrics:
    rate = row.get('images_per_second')
    if isinstance(rate, (int, float)) and rate > 0:
      training += (row['step'] - before) * batch / rate
    before = row['step']
  loading = sum(row['seconds'] for row in facts.starts)
  total = sum(row['seconds'] for row in facts.events if row['event'] in _ENDS)
  if not training or not facts.starts or _unended(facts):
    return None
  rest = max(0.0, total - training - loading)
  return [
      ('training', training),
      ('loading the data and building the model', loading),
      ('compiling, drawing grids, saving', rest),
  ], training + loading + rest


def _unended(facts):
  """Number of starts without an end: killed, or still running."""
  kinds = [r['event'] for r in facts.events if r['event'] in ('start', *_ENDS)]
  following = [*kinds[1:], 'start']
  return sum(a == b == 'start' for a, b in zip(kinds, following))


def _not_finite(facts):
  """Steps whose loss is missing or not a number."""
  finite = np.isfinite(_column(facts.metrics, 'loss'))
  return [row['step'] for row, has in zip(facts.metrics, finite) if not has]


def _commands(facts):
  """(what for, command) to make the run and this report again."""
  workdir = shlex.quote(facts.workdir)
  settings = [
      shlex.quote(f'--config.{name}={value}')
      for name, (_, value) in facts_lib.overrides(facts.config).items()
      if value is not None
  ]
  start = 'python -m ddpm.main --config=configs/default.py'
  found = [
      ('Train', ' \\\n  '.join([start, *settings, '--workdir=runs/again'])),
      (
          'Draw images',
          f'python -m ddpm.sample --workdir={workdir} --seeds=0-63'
          ' --outdir=out',
      ),
      ('Score', f'python -m ddpm.evaluate --workdir={workdir}'),
      ('Make this page', f'python -m ddpm.report --workdir={workdir}'),
  ]
  software = _software(facts)
  commit = software and software[-1].get('commit')
  if commit and not commit.endswith('-dirty'):
    found.insert(0, ('Check out the code', f'git checkout {commit}'))
  return found


def _comparison(runs):
  """What differs between runs: settings, curves, newest scores, last grids."""
  differences = facts_lib.differences([run.config for run in runs])
  drawn = []
  for run in runs:
    step = max(run.grids, default=0)
    picture = None
    if run.grids:
      picture = images.of_grid(step, run.grids[step], images.BESIDE_PIXELS)
    drawn.append((run, step, picture))
  scores = [{(s[0], s[1]): s for s in _floors(run)} for run in runs]
  names = dict.fromkeys(key for found in scores for key in found)
  return {
      'runs': runs,
      'differences': differences,
      'charts': [
          chart
          for chart in (
              _beside(runs, 'Loss', 'loss', logarithmic=True),
              _beside(runs, 'Images per second', 'images_per_second'),
          )
          if chart
      ],
      # Other losses, or other data, have another scale.
      'another_scale': any(
          name.startswith(('diffusion.', 'data.')) for name in differences
      ),
      'grids': drawn,
      'scores': [
          (*name, [found.get(name) for found in scores]) for name in names
      ],
  }


def _beside(runs, title, name, *, logarithmic=False):
  """Chart of one field of several runs' logs; None without values."""
  parts = [_chart(run.metrics, title, {name: run.workdir}) for run in runs]
  curves = [curve for part in parts if part for curve in part.curves]
  if not curves:
    return None
  return charts.Chart(
      title,
      'step',
      curves,
      logarithmic
      and all((c.y[np.isfinite(c.y)] > 0).all() for c in curves),
  )
