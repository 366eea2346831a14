"""Saves and restores a run's state.

A checkpoint is `WORKDIR/checkpoints/ckpt-STEP`, written by
`tf.train.CheckpointManager` in the background. It is independent of devices:
any strategy reads what another wrote. It stores the layout of the network's
weights, so that a checkpoint of another model is detected and reported.

Crashes and disks can damage a checkpoint. So each is read back before an older
one is removed, and verified before it is restored: against its checksums, and
for weights that are not finite. Damaged ones are skipped with a warning, and
the newest that verifies is used.
"""

from concurrent import futures
import json
import os
import re

from absl import logging
import tensorflow as tf

from ddpm.runtime import files
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import reason
from ddpm.runtime.errors import UserError
from ddpm.runtime.errors import writing

# Instead of a step.
_NONE, _NONE_SOUND = -1, -2

# Entries that have to be finite. Sums of losses may not be, in float16.
_FINITE = ('params/', 'ema/', 'adam_m/', 'adam_v/')


class Checkpointer:
  """Saves and restores a `state.State`.

  Args:
    workdir: the run's folder, shared by all workers.
    state: `state.State`.
    layout: `flat.Layout` of the model.
    writes: whether this process writes checkpoints.
    keep_last: number of newest checkpoints to keep.
    keep_every_steps: steps between checkpoints that are kept for good, in
      `checkpoints/kept`; 0 for none.
  """

  def __init__(
      self, workdir, state, layout, *, writes, keep_last, keep_every_steps
  ):
    self._workdir = workdir
    self._state = state
    self._layout = layout
    self._writes = writes
    self._keep_last = keep_last
    self._keep_every_steps = keep_every_steps
    with tf.device('CPU:0'):
      self._layout_json = tf.Variable(layout.to_json(), trainable=False)
    self._last = self._kept = self._copy = None
    # One thread, so that checkpoints are written in order.
    self._thread = futures.ThreadPoolExecutor(1)
    self._pending = None

  def restore(self, gather=None):
    """Restores the newest checkpoint that verifies, on this worker.

    Call it on every worker, before `save`. Only the one that writes verifies,
    which reads all of a checkpoint; the others take its word.

    Args:
      gather: function from this worker's list of integers to the list of all
        workers' lists, the writing one's first: `workers.gather`. None if
        there are no others.

    Returns:
      The checkpoint's step, or 0 if there is none.

    Raises:
      UserError: there are checkpoints but none verifies, or the newest that
        does is of another model or lacks part of the state; or the workers do
        not share the workdir.
    """
    step, path = self._agreed(gather)
    if path is not None:
      reader = _reader(path)
      _check_layout(reader, path, self._layout)
      _check_entries(reader, path, self._state)
      entries = _entries(self._state.variables())
      _restore_counters(reader, entries)
      checkpoint = tf.train.Checkpoint(layout=self._layout_json, **entries)
      status = checkpoint.read(
          files.without_wildcards(path)
      ).assert_existing_objects_matched()
      # The manager's save counter has no counterpart here.
      status.expect_partial()
    if self._writes:
      self._prepare_to_write(step)
    return step

  def _agreed(self, gather):
    """Step and path of the checkpoint to restore, else 0 and None."""
    directories = _directories(self._workdir)
    verifies = self._writes or gather is None
    gather = gather or (lambda numbers: [numbers])
    step, path, damage = 0, None, None
    if verifies:
      step, path, damage = _newest(self._workdir)
    if path is not None:
      choice = [step, directories.index(os.path.dirname(path))]
    else:
      choice = [_NONE_SOUND if _was_completed(self._workdir) else _NONE, 0]
    (step, kept), *_ = gather(choice)
    if step == _NONE_SOUND:
      raise UserError(_none_sound(self._workdir, damage))
    if step == _NONE:
      return 0, None
    path = os.path.join(directories[kept], f'ckpt-{step}')
    if not all(map(all, gather([tf.io.gfile.exists(path + '.index')]))):
      raise UserError(
          f'some workers have no {path}, which the first one has: the workdir'
          ' must be a folder that all of them share'
      )
    return step, path

  def _prepare_to_write(self, step):
    with tf.device('CPU:0'):
      self._copy = tf.nest.map_structure(
          lambda v: tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False),
          self._state.variables(),
      )
    checkpoint = tf.train.Checkpoint(
        layout=self._layout_json, **_entries(self._copy)
    )
    directory, kept = _directories(self._workdir)
    with writing(directory):
      _sweep_leftovers(directory)
      _sweep_leftovers(kept)
      _write_state_file(directory, newest=step)
      self._last = _manager(checkpoint, directory, self._keep_last)
      self._kept = _manager(checkpoint, kept, None)

  def save(self, step, *, leaving=False):
    """Saves the state as the checkpoint of a step, if this process writes.

    Waits for the previous save, copies the state to the host and returns. The
    copy is written in the background.

    Args:
      step: steps done.
      leaving: whether the process has to exit soon: what it writes to a bucket
        is not read back, which takes as long as writing it.

    Raises:
      UserError: the previous checkpoint could not be written, or its weights
        or moments were not finite.
    """
    if not self._writes:
      return
    self.wait()
    tf.nest.map_structure(
        lambda copy, v: copy.assign(v.read_value()),
        self._copy,
        self._state.variables(),
    )
    self._pending = self._thread.submit(self._write, step, leaving)

  def wait(self):
    """Waits until all saves are on disk. Raises as `save` does."""
    if self._pending is not None:
      self._pending.result()

  def raise_errors(self):
    """Raises as `save` does, without waiting."""
    if self._pending is not None and self._pending.done():
      self._pending.result()

  def _write(self, step, leaving):
    _check_finite(self._copy, step)
    callbacks = [_flush, _read_back]
    # The one before has been read back, and remains.
    hurry = leaving and files.is_in_bucket(self._workdir)
    if hurry and self._keep_last > 1:
      callbacks.remove(_read_back)
    managers = [self._last]
    if self._keep_every_steps and step % self._keep_every_steps == 0:
      managers.append(self._kept)
    for manager in managers:
      with writing(manager.directory), tf.device('CPU:0'):
        # The manager runs the callbacks before it removes older checkpoints.
        manager.save(
            checkpoint_number=step,
            options=tf.train.CheckpointOptions(
                experimental_write_callbacks=callbacks
            ),
        )


def find(workdir, which):
  """Finds and verifies a checkpoint.

  Args:
    workdir: the run's folder.
    which: 'latest', for the newest that verifies; a step, as a string; or a
      path, of any run.

  Returns:
    Its path.

  Raises:
    UserError: it does not exist or does not verify.
  """
  if which != 'latest' and not which.isdecimal():
    return _find_path(which)
  found = _list(workdir)
  if not found:
    raise UserError(none_in(workdir))
  if which == 'latest':
    _, path, damage = _newest(workdir)
    if not path:
      raise UserError(_none_sound(workdir, damage))
    return path
  paths = [path for step, path in found if str(step) == which]
  if not paths:
    steps = ', '.join(str(step) for step in sorted({step for step, _ in found}))
    raise BadArgument(
        f'checkpoint is {which}, but {workdir} has the steps: {steps}'
    )
  damaged = {}
  for path in paths:
    if not (damage := _damage(path)):
      return path
    damaged[path] = damage
  raise _unusable(*next(iter(damaged.items())))


def _find_path(which):
  """`find` for a path, with or without its .index suffix."""
  path = which.removesuffix('.index')
  if not re.fullmatch(r'ckpt-\d+', os.path.basename(path)):
    raise BadArgument(
        f'checkpoint is {which}, expected latest, a step, or a path such as'
        ' runs/mnist5k/checkpoints/ckpt-600'
    )
  if not tf.io.gfile.exists(path + '.index'):
    raise BadArgument(f'checkpoint is {which}, but there is no {path}.index')
  if damage := _damage(path):
    raise _unusable(path, damage)
  return path


def find_all(workdir):
  """Finds the current checkpoints, one per step, oldest first.

  Each is verified just before it is yielded: a run in progress may have removed
  it meanwhile.

  Yields:
    Paths.

  Raises:
    UserError: none verifies.
  """
  found = _list(workdir)
  if not found:
    raise UserError(none_in(workdir))
  last = damage = None
  for step, path in reversed(found):
    if step == last:
      continue
    if damage := _damage(path):
      logging.warning('skipping %s: %s', path, damage)
    else:
      last = step
      yield path
  if last is None:
    # The run may have replaced them all meanwhile.
    _, path, damage = _newest(workdir)
    if not path:
      raise UserError(_none_sound(workdir, damage))
    yield path


def none_in(workdir):
  """Error message for a workdir without checkpoints."""
  return (
      f'{workdir} has no checkpoints: train first, with python -m ddpm.main'
      f' --config=... --workdir={workdir}'
  )


def any_in(workdir):
  """Whether a workdir holds checkpoints, damaged or not."""
  return bool(_list(workdir))


def newest_step(workdir):
  """Step of a workdir's newest checkpoint, damaged or not; 0 for none."""
  return max((step for step, _ in _list(workdir)), default=0)


def read_weights(path, layout, weights):
  """Reads one flat vector of weights from a checkpoint.

  Args:
    path: the checkpoint's path.
    layout: `flat.Layout` of the model.
    weights: 'raw', or the name of an EMA, such as '0.9999' or 'power:0.05'.

  Returns:
    Step (integer), float32 NumPy array [P].

  Raises:
    UserError: the checkpoint is of another model, lacks that EMA, cannot be
      read, or is gone (a run in progress removes old ones).
  """
  try:
    reader = _reader(path)
    _check_layout(reader, path, layout)
    name = 'params' if weights == 'raw' else f'ema/{weights}'
    if not reader.has_tensor(_entry(name)):
      raise UserError(f'{path} has no {name}')
    step = int(reader.get_tensor(_entry('step')))
    return step, reader.get_tensor(_entry(name))
  except tf.errors.OpError as e:
    raise _unusable(path, reason(e)) from e


def step_of(path):
  """The step of a checkpoint, from its path."""
  return int(path.rpartition('-')[2])


def workdir_of(path):
  """The workdir of a checkpoint, from its path."""
  directory = os.path.dirname(path)
  if os.path.basename(directory) == 'kept':
    directory = os.path.dirname(directory)
  return os.path.dirname(directory)


def _directories(workdir):
  directory = os.path.join(workdir, 'checkpoints')
  return directory, os.path.join(directory, 'kept')


def _entry(name):
  """The key of a state entry, such as 'ema/0.9999', in a checkpoint's file."""
  return name.replace('.', '..') + '/.ATTRIBUTES/VARIABLE_VALUE'


def _entries(state):
  """The state's dict, with the entry names of checkpoints since version 1."""
  state = dict(state)
  return {'memory': dict(state.pop('loss_history')), **state}


def _places(entries):
  """Where each variable is in `_entries`: its dict and key there, by name."""
  places = {}
  for name, value in entries.items():
    if isinstance(value, dict):
      places |= {f'{name}/{key}': (value, key) for key in value}
    else:
      places[name] = (entries, name)
  return places


def _restore_counters(reader, entries):
  """Restores what older versions saved as int32, and drops it from entries."""
  dtypes = reader.get_variable_to_dtype_map()
  for name, (group, key) in _places(entries).items():
    variable = group[key]
    if dtypes[_entry(name)] != variable.dtype:
      saved = reader.get_tensor(_entry(name))
      variable.assign(tf.cast(saved, variable.dtype))
      del group[key]


def _list(workdir):
  """All checkpoints, damaged or not: list of (step, path), newest first."""
  directory, kept = _directories(workdir)
  # The sort is stable: of two with the same step, the kept one comes last.
  found = [*_list_in(directory), *_list_in(kept)]
  return sorted(found, key=lambda pair: -pair[0])


def _list_in(directory):
  if not tf.io.gfile.isdir(directory):
    return set()
  names = tf.io.gfile.listdir(directory)
  matches = [re.fullmatch(r'(ckpt-(\d+))\.(index|data-.*)', n) for n in names]
  return {(int(m[2]), os.path.join(directory, m[1])) for m in matches if m}


def _check_finite(state, step):
  """Raises UserError if weights, EMAs or moments are not finite.

  The step looks at the gradient only. A rate or an epsilon beyond float32's
  range makes the update infinite.
  """
  for name, (group, key) in _places(_entries(state)).items():
    if f'{name}/'.startswith(_FINITE) and not _is_finite(group[key]):
      raise UserError(
          f'{name} of step {step} is not finite, and not saved: lower'
          ' optimizer.learning_rate, or raise optimizer.epsilon; the last'
          ' checkpoint is from before'
      )


def _manager(checkpoint, directory, max_to_keep):
  # With a name, so that the folder itself is opened.
  path = files.without_wildcards(os.path.join(directory, 'x'))
  return tf.train.CheckpointManager(
      checkpoint, os.path.dirname(path), max_to_keep=max_to_keep
  )


def _newest(workdir):
  """Finds the newest checkpoint that verifies.

  Returns:
    Its step and path, and None; or if none does, 0, None, and what is wrong
    with the newest, None if there is none.
  """
  found, before = _list(workdir), None
  while found != before:  # A run in progress may replace them all meanwhile.
    first = None
    for step, path in found:
      damage = _damage(path)
      if not damage:
        return step, path, None
      first = first or f'{path}: {damage}'
      if (step, path) in _list(workdir):
        logging.warning('%s is damaged, skipping it: %s', path, damage)
    before, found = found, _list(workdir)
  return 0, None, first


def _reader(path):
  # `tf.train.load_checkpoint` takes a prefix for a folder on some file systems.
  return tf.compat.v1.train.NewCheckpointReader(
      files.without_wildcards(path)
  )


def _was_completed(workdir):
  """Whether any save completed; its last act is the file `checkpoint`.

  If none did, the first one was killed, and the run starts at step 0.
  """
  directory, _ = _directories(workdir)
  return tf.io.gfile.exists(os.path.join(directory, 'checkpoint'))


def _none_sound(workdir, damage):
  """Error message; `damage` is what is wrong with the newest, if known."""
  details = f' ({damage})' if damage else ''
  return (
      f'{workdir} has checkpoints, but none that is sound{details}: restore'
      ' one, or use another workdir'
  )


def _unusable(path, damage):
  """The error of a checkpoint that was there a moment ago."""
  if tf.io.gfile.exists(path + '.index'):
    return UserError(f'{path} is damaged: {damage}')
  return UserError(
      f'{path} is gone: a run in progress removes its older checkpoints; run'
      ' the same command again, for a newer one'
  )


def _damage(path):
  """What is wrong with a checkpoint, or None.

  Reads all of it; TensorFlow verifies the checksums. Weights and moments have
  to be finite.
  """
  try:
    reader = _reader(path)
    with tf.device('CPU:0'):
      for name, dtype in reader.get_variable_to_dtype_map().items():
        # Unlike the reader, the op does not hold the GIL.
        (value,) = tf.raw_ops.RestoreV2(
            prefix=files.without_wildcards(path),
            tensor_names=[name],
            shape_and_slices=[''],
            dtypes=[dtype],
        )
        if name.startswith(_FINITE) and not _is_finite(value):
          entry = name.partition('/.ATTRIBUTES')[0].replace('..', '.')
          return f'{entry} has values that are not finite'
  except Exception as e:  # Damage can make TensorFlow raise anything.
    return reason(e)
  return None


def _is_finite(value):
  return bool(tf.reduce_all(tf.math.is_finite(value)))


def _read_back(path):
  """Raises OSError if a written checkpoint does not verify."""
  if damage := _damage(path):
    raise OSError(f'{path} does not read back: {damage}')


def _flush(path):
  """Makes a checkpoint survive a power cut. Buckets do so by themselves."""
  if files.is_in_bucket(path):
    return
  directory = os.path.dirname(path)
  parts = files.matching(directory, os.path.basename(path) + '.*')
  for name in [*parts, directory]:
    file = os.open(name, os.O_RDONLY)
    try:
      os.fsync(file)
    finally:
      os.close(file)


def _sweep_leftovers(directory):
  """Makes the directory, and removes what killed saves left in it."""
  tf.io.gfile.makedirs(directory)
  for name in tf.io.gfile.listdir(directory):
    path = os.path.join(directory, name)
    if re.fullmatch(r'ckpt-\d+_temp/?', name):
      tf.io.gfile.rmtree(path)
    elif '.tempstate' in name:
      tf.io.gfile.remove(path)


def _write_state_file(directory, *, newest):
  """Writes the file `checkpoint`, a `CheckpointState` in text form.

  It lists the checkpoints up to `newest`, the newest that verifies, for the
  CheckpointManager. The file on disk may be missing or list others.
  """
  path = os.path.join(directory, 'checkpoint')
  steps = [s for s, p in _list_in(directory) if s <= newest]
  if not steps:
    if tf.io.gfile.exists(path):
      tf.io.gfile.remove(path)
    return
  lines = [f'model_checkpoint_path: "ckpt-{newest}"']
  for i, step in enumerate(sorted(steps)):
    lines.append(f'all_model_checkpoint_paths: "ckpt-{step}"')
    # Only the order matters to the manager.
    lines.append(f'all_model_checkpoint_timestamps: {i + 1}')
  files.write_file(path, ('\n'.join(lines) + '\n').encode())


def _check_layout(reader, path, layout):
  """Raises UserError, naming differences, for a checkpoint of another model."""
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
  """Raises UserError if a checkpoint lacks part of the state."""
  shapes = reader.get_variable_to_shape_map()
  differ = []
  for name, (group, key) in _places(_entries(state.variables())).items():
    variable, shape = group[key], shapes.get(_entry(name))
    if shape is None:
      differ.append(f'it has no {name}')
    elif list(shape) != variable.shape.as_list():
      differ.append(
          f'{name} has shape {shape}, expected {variable.shape.as_list()}'
      )
  if differ:
    raise UserError(f'{path} cannot be resumed: {"; ".join(differ)}')
