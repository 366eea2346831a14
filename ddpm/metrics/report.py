"""Reports scores: a table, evaluation.jsonl, TensorBoard, plots."""

import io
import json
import math
import os

from matplotlib.figure import Figure
import tensorflow as tf

from ddpm.run import board
from ddpm.run import lock
from ddpm.runtime import files
from ddpm.runtime import strict_json

# A result replaces an earlier one that agrees in all of these.
_IDENTITY = (
    'step',
    'weights',
    'sampler',
    'steps',
    'eta',
    'guidance',
    'extractor',
    'num_samples',
    'data',
    'split',
    'bpd_split',
)

# Not plotted: uncertainties of other values.
_SPREADS = ('kid_stderr', 'is_std', 'bpd_stderr')


def table(result):
  """Formats a result as text, with each score's floor.

  Args:
    result: dict of metric name -> value, and 'details'.
  """
  floor = result['details']['floor']
  rows = [('metric', 'value', 'real images')]
  for name, value in _values(result).items():
    real = f'{floor[name]:.4g}' if name in floor else ''
    rows.append((name, f'{value:.4g}', real))
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  return '\n'.join(
      f'{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}'
      for row in rows
  )


def record(workdir, result):
  """Adds a result to WORKDIR/evaluation.jsonl, TensorBoard and plots.

  Values that are not finite are null in the file.
  """
  folder = os.path.join(workdir, 'evaluation')
  tf.io.gfile.makedirs(folder)
  # Another evaluation of the run may have one to add, too.
  with lock.turn(folder):
    _record(workdir, result)


def _record(workdir, result):
  path = os.path.join(workdir, 'evaluation.jsonl')
  rows = [r for r in _read(path) if _identity(r) != _identity(result)]
  rows.append(result)
  rows.sort(key=lambda row: row['details']['step'])
  lines = ''.join(strict_json.dumps(row) + '\n' for row in rows)
  files.write_file(path, lines.encode())

  # A separate folder: TensorBoard follows one writer per folder.
  scores = board.TensorBoard(os.path.join(workdir, 'tensorboard/evaluation'))
  scores.scalars(result['details']['step'], _values(result))
  scores.close()

  training, sampling = _curves(rows, 'step'), _curves(rows, 'steps')
  _plot(os.path.join(workdir, 'evaluation.png'), training, 'training step')
  # A curve needs at least two numbers of steps.
  sampling = {
      name: {k: v for k, v in curves.items() if len(v) > 1}
      for name, curves in sampling.items()
  }
  if any(sampling.values()):
    path = os.path.join(workdir, 'evaluation_steps.png')
    _plot(path, sampling, 'steps of the sampler')


def _values(result):
  return {k: v for k, v in result.items() if k != 'details'}


def _identity(result):
  return [result['details'].get(name) for name in _IDENTITY]


def _read(path):
  if not tf.io.gfile.exists(path):
    return []
  with tf.io.gfile.GFile(path) as f:
    return [json.loads(line) for line in f.read().splitlines()]


def _curves(rows, axis):
  """Groups results into metric -> curve label -> [(x, value, floor)].

  The x axis is 'step' or 'steps'. Settings that are neither the axis nor in
  the metric's name are in the label.
  """
  label_of = {
      'step': '{weights}, {sampler} {steps}, {data} {split}',
      'steps': 'step {step}, {weights}, {sampler}, {data} {split}',
  }[axis]
  curves = {}
  for row in rows:
    details = row['details']
    for name, value in _values(row).items():
      # Bits per dimension are measured on a separate split.
      split = details['bpd_split' if name.startswith('bpd') else 'split']
      sampler = details['sampler']
      for setting, plain in (('eta', 0.0), ('guidance', 1.0)):
        if details.get(setting, plain) != plain:
          sampler += f' {setting} {details[setting]}'
      label = label_of.format(**details | {'split': split, 'sampler': sampler})
      # A value that is not finite is null in the file: a gap in the curve.
      value = math.nan if value is None else value
      point = (details[axis], value, details['floor'].get(name))
      curves.setdefault(name, {}).setdefault(label, []).append(point)
  return curves


def _plot(path, curves, axis):
  """Plots one panel per metric: its curves and, dotted, the floor."""
  curves = {
      name: lines
      for name, lines in curves.items()
      if lines and not name.startswith(_SPREADS)
  }
  labels = sorted({label for lines in curves.values() for label in lines})
  columns = min(3, len(curves))
  rows = -(-len(curves) // columns)
  figure = Figure(figsize=(5 * columns, 3.5 * rows), layout='constrained')
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for panel in panels[len(curves) :]:
    panel.set_visible(False)
  drawn = {}
  for panel, (name, lines) in zip(panels, curves.items()):
    for label, points in lines.items():
      color = f'C{labels.index(label)}'
      x, y, floor = zip(*sorted(points, key=lambda point: point[0]))
      (drawn[label],) = panel.plot(x, y, marker='o', color=color)
      if floor[-1] is not None:
        panel.axhline(floor[-1], linestyle=':', color=color)
    panel.set(title=name, xlabel=axis)
  figure.suptitle('dotted: real images', fontsize='medium')
  # Below all panels, so that it hides no points.
  figure.legend(
      [drawn[label] for label in labels], labels, loc='outside lower center'
  )
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=100)
  files.write_file(path, file.getvalue())
