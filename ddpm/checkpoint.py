"""The state of a run, to disk and back.

A checkpoint is `WORKDIR/checkpoints/ckpt-STEP`, written by
`tf.train.CheckpointManager`. It knows nothing of devices: what one strategy
wrote, any other reads. With the state goes the layout of the network's
weights, so that a checkpoint of another model can be told, and named.
"""

import json
import os
import re

import tensorflow as tf

from ddpm.errors import UserError


class Checkpointer:
  """Saves and restores a `state.State`.

  Args:
    workdir: the run's folder, shared by all workers.
    state: `state.State`.
    layout: `state.Layout` of the model.
    writes: whether this process is the one that writes.
    keep_last: newest checkpoints to keep.
    keep_every_steps: keep one every so many steps for good, in
      `checkpoints/kept`; 0 for none.
  """

  def __init__(
      self, workdir, state, layout, *, writes, keep_last, keep_every_steps
  ):
    self._workdir = workdir
    self._state = state
    self._layout = layout
    self._keep_every_steps = keep_every_steps
    with tf.device('CPU:0'):
      names = tf.Variable(layout.to_json(), trainable=False)
    self._checkpoint = tf.train.Checkpoint(layout=names, **state.variables())
    self._last = self._kept = None
    if writes:
      directory, kept = _directories(workdir)
      self._last = tf.train.CheckpointManager(
          self._checkpoint, directory, max_to_keep=keep_last
      )
      self._kept = tf.train.CheckpointManager(
          self._checkpoint, kept, max_to_keep=None
      )

  def save(self, step):
    """Saves the state as the checkpoint of a step, if this process writes."""
    if self._last is None:
      return
    self._last.save(checkpoint_number=step)
    if self._keep_every_steps and step % self._keep_every_steps == 0:
      self._kept.save(checkpoint_number=step)

  def restore(self):
    """Restores the newest checkpoint into the state, on this worker.

    Returns:
      Steps done: the checkpoint's, or 0 if there is none.

    Raises:
      UserError: the newest checkpoint is of another model, or incomplete.
    """
    steps = find_all(self._workdir)
    if not steps:
      return 0
    path = steps[max(steps)]
    reader = _open(path)
    _check_layout(reader, path, self._layout)
    _check_entries(reader, path, self._state)
    self._checkpoint.read(path).assert_existing_objects_matched()
    return max(steps)


def find_all(workdir):
  """All checkpoints of a workdir: dict of step -> path."""
  found = {}
  for directory in reversed(_directories(workdir)):
    if not tf.io.gfile.isdir(directory):
      continue
    for name in tf.io.gfile.listdir(directory):
      # The index is written last: without it, a save did not end.
      if match := re.fullmatch(r'ckpt-(\d+)\.index', name):
        path = os.path.join(directory, name.removesuffix('.index'))
        found[int(match[1])] = path
  return found


def find(workdir, which):
  """The path of one checkpoint.

  Args:
    workdir: the run's folder.
    which: 'latest', or a step as a string.

  Raises:
    UserError: it does not exist.
  """
  found = find_all(workdir)
  if not found:
    raise UserError(
        f'{workdir} has no checkpoints: train first, with python -m ddpm.main'
        f' --config=... --workdir={workdir}'
    )
  if which == 'latest':
    return found[max(found)]
  if not which.isdigit() or int(which) not in found:
    steps = ', '.join(str(step) for step in sorted(found))
    raise UserError(
        f'--checkpoint is {which}, but {workdir} has the steps: {steps}'
    )
  return found[int(which)]


def read_weights(path, layout, weights):
  """Reads one flat vector of weights, and nothing else.

  Args:
    path: of a checkpoint.
    layout: `state.Layout` of the model.
    weights: 'raw', or the decay of an average, '0.9999'.

  Returns:
    step (integer), float32 NumPy array [P].

  Raises:
    UserError: a checkpoint of another model, or without that average.
  """
  reader = _open(path)
  _check_layout(reader, path, layout)
  name = 'params' if weights == 'raw' else f'ema/{weights}'
  if not reader.has_tensor(_entry(name)):
    raise UserError(f'{path} has no {name}')
  step = int(reader.get_tensor(_entry('step')))
  return step, reader.get_tensor(_entry(name))


def _directories(workdir):
  directory = os.path.join(workdir, 'checkpoints')
  return directory, os.path.join(directory, 'kept')


def _entry(name):
  """What a checkpoint's file calls 'ema/0.9999', say."""
  return name.replace('.', '..') + '/.ATTRIBUTES/VARIABLE_VALUE'


def _open(path):
  try:
    return tf.train.load_checkpoint(path)
  except (tf.errors.OpError, ValueError) as e:
    raise UserError(f'{path} cannot be read: {e}') from e


def _check_layout(reader, path, layout):
  """Raises UserError, with what differs, for a checkpoint of another model."""
  name = _entry('layout')
  if not reader.has_tensor(name):
    raise UserError(f'{path} is not a checkpoint of ddpm: it has no layout')
  theirs = dict(json.loads(reader.get_tensor(name)))
  ours = dict(json.loads(layout.to_json()))
  differ = [
      f'{weight} is {theirs.get(weight, "missing")} there,'
      f' {ours.get(weight, "missing")} in the model'
      for weight in ours | theirs
      if ours.get(weight) != theirs.get(weight)
  ]
  if differ:
    more = f' and {len(differ) - 3} more' if len(differ) > 3 else ''
    raise UserError(
        f'{path} is of another model: {"; ".join(differ[:3])}{more}'
    )


def _check_entries(reader, path, state):
  """Raises UserError if a checkpoint lacks a part of the state."""
  entries = {}
  for name, value in state.variables().items():
    if isinstance(value, dict):
      entries |= {f'{name}/{key}': v for key, v in value.items()}
    else:
      entries[name] = value
  shapes = reader.get_variable_to_shape_map()
  for name, variable in entries.items():
    shape = shapes.get(_entry(name))
    if shape is None:
      raise UserError(f'{path} has no {name}: it cannot be resumed')
    if list(shape) != variable.shape.as_list():
      raise UserError(
          f'{path}: {name} has shape {shape}, expected'
          f' {variable.shape.as_list()}'
      )
