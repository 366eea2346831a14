"""Saved, kept, found, restored, refused."""

import pathlib
import re
import shutil
import threading

import numpy as np
import pytest
from support import Network
from support import tensors
from support import tiny_config
import tensorflow as tf

from ddpm.optim import ema
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.run import reader
from ddpm.runtime.errors import UserError
from ddpm.training import state as state_lib


def make_without_restoring(
    workdir, network, *, decays=(0.9,), writes=True, keep_every=0
):
  state = state_lib.State(
      network.params, ema_names=[str(decay) for decay in decays]
  )
  checkpoints = checkpoint.Checkpointer(
      str(workdir),
      state,
      network.layout,
      writes=writes,
      keep_last=2,
      keep_every_steps=keep_every,
  )
  return state, checkpoints


def make(workdir, network, **settings):
  state, checkpoints = make_without_restoring(workdir, network, **settings)
  return state, checkpoints, checkpoints.restore()


def saved(workdir, network, *steps):
  """Saves checkpoints of some steps, each with its step in the state."""
  state, checkpoints, _ = make(workdir, network)
  for step in steps:
    state.step.assign(step)
    checkpoints.save(step)
  checkpoints.wait()


def steps_of(workdir):
  return sorted(
      int(path.stem.removeprefix('ckpt-')) for path in workdir.rglob('*.index')
  )


def test_restores_every_part(tmp_path, network):
  state, checkpoints, step = make(tmp_path, network)
  assert step == 0
  for i, variable in enumerate(tf.nest.flatten(state.variables())):
    variable.assign(tf.fill(variable.shape, tf.cast(i + 1, variable.dtype)))
  checkpoints.save(7)
  checkpoints.wait()
  other, _, step = make(tmp_path, network, writes=False)
  assert step == 7
  tf.nest.map_structure(
      np.testing.assert_array_equal, other.read(), state.read()
  )


def test_saves_the_state_as_it_was_when_asked(tmp_path, network, monkeypatch):
  """The state moves on while the copy is written."""
  state, checkpoints, _ = make(tmp_path, network)
  moved_on = threading.Event()
  flush = checkpoint._flush
  monkeypatch.setattr(
      checkpoint, '_flush', lambda path: (moved_on.wait(), flush(path))
  )
  state.step.assign(3)
  checkpoints.save(3)
  state.step.assign(4)
  state.params.assign(state.params * 0)
  checkpoints.raise_errors()
  moved_on.set()
  checkpoints.wait()
  path = checkpoint.find(str(tmp_path), 'latest')
  step, weights = checkpoint.read_weights(path, network.layout, 'raw')
  assert step == 3
  np.testing.assert_array_equal(weights, network.params)


def test_keeps_the_newest_and_every_so_many(tmp_path, network):
  _, checkpoints, _ = make(tmp_path, network, keep_every=20)
  for step in range(10, 70, 10):
    checkpoints.save(step)
  checkpoints.wait()
  assert steps_of(tmp_path) == [20, 40, 50, 60, 60]
  assert checkpoint.find(str(tmp_path), 'latest').endswith('s/ckpt-60')
  assert checkpoint.find(str(tmp_path), '20').endswith('kept/ckpt-20')
  with pytest.raises(UserError, match='has the steps: 20, 40, 50, 60'):
    checkpoint.find(str(tmp_path), '30')


def test_finds_all_in_their_order(tmp_path, network):
  with pytest.raises(UserError, match='has no checkpoints: train first'):
    list(checkpoint.find_all(str(tmp_path)))
  _, checkpoints, _ = make(tmp_path, network, keep_every=20)
  for step in range(10, 70, 10):
    checkpoints.save(step)
  checkpoints.wait()
  directory = tmp_path / 'checkpoints'
  # 60 is there twice. 50 is damaged, and 40 is gone when its turn comes.
  truncated(directory / 'ckpt-50.index')
  paths = checkpoint.find_all(str(tmp_path))
  assert next(paths) == str(directory / 'kept' / 'ckpt-20')
  shutil.rmtree(directory / 'kept')
  assert list(paths) == [str(directory / 'ckpt-60')]
  truncated(directory / 'ckpt-60.index')
  with pytest.raises(UserError, match='none that is sound'):
    list(checkpoint.find_all(str(tmp_path)))


def test_keeps_count_over_restarts(tmp_path, network):
  saved(tmp_path, network, 10, 20)
  saved(tmp_path, network, 30)
  assert steps_of(tmp_path) == [20, 30]
  directory = str(tmp_path / 'checkpoints')
  assert tf.train.latest_checkpoint(directory).endswith('ckpt-30')


def test_an_older_one_goes_only_when_the_new_one_verifies(
    tmp_path, network, monkeypatch
):
  saved(tmp_path, network, 10, 20)
  _, checkpoints, _ = make(tmp_path, network)

  def lose_the_end(path):
    with open(path + '.data-00000-of-00001', 'r+b') as f:
      f.truncate(100)

  monkeypatch.setattr(checkpoint, '_flush', lose_the_end)
  checkpoints.save(30)
  with pytest.raises(UserError, match='checkpoints cannot be written: '):
    checkpoints.wait()
  assert make(tmp_path, network)[2] == 20
  assert steps_of(tmp_path) == [10, 20, 30]


@pytest.mark.parametrize(
    'in_a_bucket, leaving, reads', [(True, True, 0), (True, False, 1),
                                    (False, True, 1)],
)  # fmt: skip
def test_a_bucket_is_not_read_back_in_a_hurry(
    tmp_path, network, monkeypatch, in_a_bucket, leaving, reads
):
  workdir = f'ram://{tmp_path.name}' if in_a_bucket else tmp_path
  _, checkpoints, _ = make(workdir, network)
  read = []
  monkeypatch.setattr(checkpoint, '_damage', read.append)
  checkpoints.save(1, leaving=leaving)
  checkpoints.wait()
  assert len(read) == reads
  monkeypatch.undo()
  assert make(workdir, network)[2] == 1


@pytest.mark.parametrize('kept', [False, True])
def test_only_the_writer_reads_to_verify(
    tmp_path, network, monkeypatch, kept
):
  """The others take its word for which checkpoint is sound."""
  saved(tmp_path, network, 2, 4, 6)
  directory = tmp_path / 'checkpoints'
  if kept:
    (directory / 'kept').mkdir(exist_ok=True)
    for file in directory.glob('ckpt-4.*'):
      shutil.move(file, directory / 'kept' / file.name)
  monkeypatch.setattr(checkpoint, '_newest', None)
  _, checkpoints = make_without_restoring(tmp_path, network, writes=False)
  said = []

  def gather(numbers):
    said.append(numbers)
    return [[4, int(kept)] if len(said) == 1 else [1], numbers]

  assert checkpoints.restore(gather) == 4
  assert said[1] == [True]
  # A folder of its own.
  _, checkpoints = make_without_restoring(
      tmp_path / 'other', network, writes=False
  )
  said.clear()
  with pytest.raises(UserError, match='ckpt-4, which the first one has'):
    checkpoints.restore(gather)


def test_that_none_is_sound_is_said_by_every_worker(tmp_path, network):
  saved(tmp_path, network, 2)
  for path in (tmp_path / 'checkpoints').glob('ckpt-*'):
    path.write_bytes(b'damaged')
  said = []
  with pytest.raises(UserError, match='none that is sound'):
    _, checkpoints = make_without_restoring(tmp_path, network, writes=True)
    checkpoints.restore(lambda numbers: said.append(numbers) or [numbers])
  _, checkpoints = make_without_restoring(tmp_path, network, writes=False)
  with pytest.raises(UserError, match='none that is sound'):
    checkpoints.restore(lambda numbers: [said[0], numbers])


def test_only_the_writer_writes(tmp_path, network):
  _, checkpoints, _ = make(tmp_path, network, writes=False)
  checkpoints.save(3)
  checkpoints.wait()
  assert not list(tmp_path.iterdir())


def test_reads_one_vector_of_weights(tmp_path, network):
  state, checkpoints, _ = make(tmp_path, network, decays=(0.9, 0.5))
  state.ema['0.5'].assign(network.params * 2)
  state.step.assign(3)
  checkpoints.save(3)
  checkpoints.wait()
  path = checkpoint.find(str(tmp_path), 'latest')
  step, weights = checkpoint.read_weights(path, network.layout, '0.5')
  assert step == 3
  np.testing.assert_array_equal(weights, network.params * 2)
  _, weights = checkpoint.read_weights(path, network.layout, 'raw')
  np.testing.assert_array_equal(weights, network.params)
  with pytest.raises(UserError, match=r'has no ema/0\.7'):
    checkpoint.read_weights(path, network.layout, '0.7')
  for file in tmp_path.rglob('ckpt-3.*'):
    file.unlink()
  with pytest.raises(UserError, match='ckpt-3 is gone: a run in progress'):
    checkpoint.read_weights(path, network.layout, 'raw')


def test_refuses_another_model_and_says_what_differs(tmp_path, network):
  saved(tmp_path, network, 3)
  other = Network(channels=16)
  differs = r'time_dense1/kernel is \[8, 32\] there, \[16, 64\] in the model'
  with pytest.raises(UserError, match='is of another model: ' + differs):
    make(tmp_path, other)


def test_refuses_a_checkpoint_without_a_part_of_the_state(tmp_path, network):
  saved(tmp_path, network, 3)
  message = r'resumed: it has no ema/0\.99; it has no ema/0\.7$'
  with pytest.raises(UserError, match=message):
    make(tmp_path, network, decays=(0.9, 0.99, 0.7))


def test_refuses_what_is_no_checkpoint_of_ours(tmp_path, network):
  (tmp_path / 'checkpoints').mkdir()
  path = str(tmp_path / 'checkpoints' / 'ckpt-1')
  tf.train.Checkpoint(x=tf.Variable(1.0)).write(path)
  with pytest.raises(UserError, match='is not a checkpoint of ddpm'):
    make(tmp_path, network)


def test_an_empty_workdir_has_nothing_to_sample(tmp_path):
  with pytest.raises(UserError, match='has no checkpoints: train first'):
    checkpoint.find(str(tmp_path), 'latest')


def truncated(path):
  path.write_bytes(path.read_bytes()[:-10])


def emptied(path):
  path.write_bytes(b'')


def changed(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def missing(path):
  path.unlink()


@pytest.mark.parametrize('part', ['index', 'data-00000-of-00001'])
@pytest.mark.parametrize('damage', [truncated, emptied, changed, missing])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path, network, caplog, damage, part
):
  saved(tmp_path, network, 10, 20)
  file = tmp_path / 'checkpoints' / f'ckpt-20.{part}'
  damage(file)
  before = file.exists() and file.read_bytes()
  state, checkpoints, step = make(tmp_path, network)
  assert step == 10 and state.step.numpy() == 10
  assert 'ckpt-20 is damaged, skipping it' in caplog.text
  assert (file.exists() and file.read_bytes()) == before
  path = checkpoint.find(str(tmp_path), 'latest')
  assert path.endswith('ckpt-10')
  # The run gets there again, and all is well.
  state.step.assign(20)
  checkpoints.save(20)
  checkpoints.wait()
  assert make(tmp_path, network)[2] == 20
  assert steps_of(tmp_path) == [10, 20]


def test_weights_that_are_not_finite_are_not_kept(tmp_path, network):
  saved(tmp_path, network, 10)
  state, checkpoints, _ = make(tmp_path, network)
  state.ema['0.9'].assign(network.params / 0)
  checkpoints.save(20)
  with pytest.raises(UserError, match=r'ema/0\.9 .* not finite'):
    checkpoints.wait()
  # Sums of losses may overflow in half precision.
  state, checkpoints, step = make(tmp_path, network)
  assert step == 10
  state.quartiles.assign(state.quartiles / 0)
  checkpoints.save(30)
  checkpoints.wait()
  assert make(tmp_path, network)[2] == 30


def poisoned(workdir, step, new_step):
  """Writes a checkpoint with a NaN, as older versions did."""
  directory = workdir / 'checkpoints'
  values = tensors(workdir, step)
  values['params/.ATTRIBUTES/VARIABLE_VALUE'][3] = np.nan
  tf.raw_ops.SaveV2(
      prefix=str(directory / f'ckpt-{new_step}'),
      tensor_names=list(values),
      shape_and_slices=[''] * len(values),
      tensors=list(values.values()),
  )


def test_weights_that_are_not_finite_are_not_used(tmp_path, network, caplog):
  saved(tmp_path, network, 10)
  poisoned(tmp_path, 10, 20)
  assert checkpoint.find(str(tmp_path), 'latest').endswith('ckpt-10')
  message = 'ckpt-20 is damaged.* params has values that are not finite'
  assert re.search(message, caplog.text)
  with pytest.raises(UserError, match='ckpt-20 is damaged: params has values'):
    checkpoint.find(str(tmp_path), '20')
  assert make(tmp_path, network)[2] == 10
  poisoned(tmp_path, 10, 40)
  for file in (tmp_path / 'checkpoints').glob('ckpt-10.*'):
    file.unlink()
  message = (
      f'^{tmp_path} has checkpoints, but none that is sound'
      rf' \({tmp_path}/checkpoints/ckpt-40: params has values that are not'
      r' finite\): restore one, or use another workdir$'
  )
  for read in (
      lambda: checkpoint.find(str(tmp_path), 'latest'),
      lambda: list(checkpoint.find_all(str(tmp_path))),
      lambda: make(tmp_path, network),
  ):
    with pytest.raises(UserError, match=message):
      read()


def test_checkpoints_that_a_run_replaces_meanwhile_are_no_damage(
    tmp_path, network, monkeypatch, caplog
):
  """Those that were listed are gone when they are to be read."""
  saved(tmp_path, network, 10, 20)
  damage, directory = checkpoint._damage, tmp_path / 'checkpoints'

  def late(path):
    for old in (10, 20):
      for file in directory.glob(f'ckpt-{old}.*'):
        file.rename(directory / file.name.replace(f'-{old}.', f'-{old + 20}.'))
    return damage(path)

  for find in (
      lambda: checkpoint.find(str(tmp_path), 'latest'),
      lambda: list(checkpoint.find_all(str(tmp_path)))[-1],
  ):
    shutil.rmtree(directory)
    saved(tmp_path, network, 10, 20)
    with monkeypatch.context() as patched:
      patched.setattr(checkpoint, '_damage', late)
      assert find() == str(directory / 'ckpt-40')
  assert 'is damaged' not in caplog.text


def test_a_kept_one_stands_in_for_a_damaged_one_of_its_step(tmp_path, network):
  _, checkpoints, _ = make(tmp_path, network, keep_every=20)
  checkpoints.save(20)
  checkpoints.wait()
  changed(tmp_path / 'checkpoints' / 'ckpt-20.data-00000-of-00001')
  for which in ('latest', '20'):
    assert checkpoint.find(str(tmp_path), which).endswith('kept/ckpt-20')
  assert make(tmp_path, network)[2] == 20


def test_no_fresh_start_where_all_are_damaged(tmp_path, network):
  saved(tmp_path, network, 10, 20)
  for file in tmp_path.rglob('*.data-*'):
    truncated(file)
  with pytest.raises(UserError, match='none that is sound'):
    make(tmp_path, network)
  with pytest.raises(UserError, match='ckpt-10 is damaged'):
    checkpoint.find(str(tmp_path), '10')
  assert steps_of(tmp_path) == [10, 20]


def test_a_first_save_that_was_killed_is_a_fresh_start(
    tmp_path, network, caplog
):
  saved(tmp_path, network, 10)
  (tmp_path / 'checkpoints' / 'ckpt-10.index').unlink()
  (tmp_path / 'checkpoints' / 'checkpoint').unlink()
  assert make(tmp_path, network)[2] == 0
  assert 'ckpt-10 is damaged, skipping it' in caplog.text


@pytest.mark.parametrize(
    'text',
    [
        None,
        'model_checkpoint_path: "ckpt-99"\n',
        'model_checkpoint_path: "/gone/ckpt-5"\n'
        'all_model_checkpoint_paths: "/gone/ckpt-5"\n',
        'nonsense',
        '',
    ],
    ids=['missing', 'names a later one', 'names others', 'nonsense', 'empty'],
)
def test_the_file_checkpoint_does_not_matter(tmp_path, network, text):
  saved(tmp_path, network, 10, 20)
  file = tmp_path / 'checkpoints' / 'checkpoint'
  file.unlink()
  if text is not None:
    file.write_text(text)
  _, checkpoints, step = make(tmp_path, network)
  assert step == 20
  checkpoints.save(30)
  checkpoints.wait()
  assert steps_of(tmp_path) == [20, 30]


def killed_in_parts(directory):
  temporary = directory / 'ckpt-30_temp'
  temporary.mkdir()
  (temporary / 'part-00000-of-00001.data-00000-of-00001').write_bytes(b'x')
  (directory / 'ckpt-30.index.tempstate123').write_bytes(b'x')


def killed_before_the_index(directory):
  (directory / 'ckpt-30.index').unlink()


def killed_in_the_index(directory):
  truncated(directory / 'ckpt-30.index')


def killed_before_the_record(directory):
  """Whole, but the file `checkpoint` does not know of it."""
  (directory / 'checkpoint').write_text(
      'model_checkpoint_path: "ckpt-20"\n'
      'all_model_checkpoint_paths: "ckpt-20"\n'
      'all_model_checkpoint_timestamps: 1\n'
  )


def killed_before_the_sweep(directory):
  for file in directory.glob('ckpt-20.*'):
    shutil.copy(file, directory / file.name.replace('20', '15'))


@pytest.mark.parametrize(
    'killed, step, steps',
    [
        (killed_in_parts, 30, [30, 40]),
        (killed_before_the_index, 20, [20, 40]),
        (killed_in_the_index, 20, [20, 30, 40]),
        (killed_before_the_record, 30, [30, 40]),
        (killed_before_the_sweep, 30, [30, 40]),
    ],
)
def test_a_kill_at_any_stage_of_a_save(tmp_path, network, killed, step, steps):
  directory = tmp_path / 'checkpoints'
  saved(tmp_path, network, 10, 20, 30)
  killed(directory)
  state, checkpoints, restored = make(tmp_path, network)
  assert restored == state.step.numpy() == step
  checkpoints.save(40)
  checkpoints.wait()
  assert steps_of(tmp_path) == steps
  assert not list(directory.glob('*temp*'))


class Tracked:
  """A run whose weights rise in a line, and its averages: float32 [P]."""

  def __init__(self, workdir, *, decays=(0.9, 0.5), stds=(0.05, 0.10)):
    self.workdir, self.decays, self.stds = str(workdir), decays, stds
    overrides = {'ema.decays': decays, 'ema.power_stds': stds}
    config_lib.save(tiny_config(**overrides), self.workdir)
    self.trained = reader.Run(self.workdir)

  def raw(self, step):
    return np.linspace(-step, step, self.trained.layout.size, dtype=np.float32)

  def power(self, std, step):
    """The integral of the profile times the line."""
    gamma = ema.power_exponent(std)
    return self.raw(step) * np.float32((gamma + 1) / (gamma + 2))

  def save(self, *steps):
    layout = self.trained.layout
    emas = ema.EMAs(self.decays, self.stds)
    state = state_lib.State(tf.zeros([layout.size]), ema_names=emas.names)
    checkpoints = checkpoint.Checkpointer(
        self.workdir, state, layout, writes=True, keep_last=2,
        keep_every_steps=100,
    )  # fmt: skip
    checkpoints.restore()
    for step in steps:
      state.step.assign(step)
      state.params.assign(self.raw(step))
      for decay in self.decays:
        state.ema[str(decay)].assign(self.raw(step) * np.float32(decay))
      for std in self.stds:
        state.ema[f'power:{std}'].assign(self.power(std, step))
      checkpoints.save(step)
    checkpoints.wait()

  def weights(self, which, at='latest'):
    path = checkpoint.find(self.workdir, at)
    return self.trained.weights(path, which)


@pytest.fixture(scope='module')
def tracked(tmp_path_factory):
  run = Tracked(tmp_path_factory.mktemp('tracked'))
  # Neither the start nor a damaged one is of use; 1050 is not kept for good.
  run.save(0, *range(100, 1100, 100), 1050)
  kept = pathlib.Path(run.workdir) / 'checkpoints' / 'kept'
  truncated(next(kept.glob('ckpt-300.data*')))
  return run


@pytest.mark.parametrize(
    'which, full, expected',
    [
        ('raw', 'raw', lambda run: run.raw(1050)),
        ('ema', 'ema:0.9', lambda run: run.raw(1050) * np.float32(0.9)),
        ('ema:0.50', 'ema:0.5', lambda run: run.raw(1050) * np.float32(0.5)),
        ('power:0.10', 'power:0.1', lambda run: run.power(0.1, 1050)),
    ],
)
def test_weights_that_are_tracked(tracked, which, full, expected):
  step, name, params = tracked.weights(which)
  assert (step, name) == (1050, full)
  np.testing.assert_array_equal(params, expected(tracked))


@pytest.mark.parametrize('at', [800, 1000, 1050])
@pytest.mark.parametrize('std', [0.05, 0.07, 0.15])
def test_weights_that_are_rebuilt(tracked, std, at):
  step, name, params = tracked.weights(f'posthoc:{std}', str(at))
  assert (step, name) == (at, f'posthoc:{std}')
  assert params.dtype == np.float32
  expected = tracked.power(std, at)
  error = np.abs(params - expected).max() / np.abs(expected).max()
  assert error < (1e-6 if std == 0.05 else 5e-3)
  keys = [
      (t, s)
      for t in (*range(100, 1100, 100), 1050)
      for s in tracked.stds
      if t <= at and t != 300
  ]
  coefficients = ema.posthoc_coefficients(*zip(*keys), at, std)
  snapshots = np.stack([tracked.power(s, t) for t, s in keys])
  np.testing.assert_allclose(
      params, coefficients @ snapshots, rtol=1e-6, atol=1e-4
  )


def test_the_first_average_may_be_a_power_function(tmp_path):
  run = Tracked(tmp_path, decays=(), stds=(0.1,))
  run.save(1, 2)
  step, name, params = run.weights('ema')
  assert (step, name) == (2, 'power:0.1')
  np.testing.assert_array_equal(params, run.power(0.1, 2))
  with pytest.raises(UserError, match=r'has 1 up to step 1$'):
    run.weights('posthoc:0.1', '1')


@pytest.mark.parametrize('which', ['foo', 'ema:', 'power', 'raw:0.1', 'ema:x'])
def test_refuses_weights_of_no_known_form(tracked, which):
  message = f'^weights is {which!r}, expected ema, ema:DECAY, power:STD, pos'
  with pytest.raises(UserError, match=message):
    tracked.weights(which)


@pytest.mark.parametrize('which', ['ema:0.9999', 'power:0.07', 'ema:0.05'])
def test_refuses_an_average_that_is_not_tracked(tracked, which):
  has = r'but the run has ema:0\.9, ema:0\.5, power:0\.05, power:0\.1, raw$'
  with pytest.raises(UserError, match=f"is '{which}', {has}"):
    tracked.weights(which)


def test_another_runs_checkpoint_is_rebuilt_from_that_run(tracked, tmp_path):
  other = Tracked(tmp_path)
  other.save(100, 200)
  for path in (
      checkpoint.find(tracked.workdir, '800'),
      checkpoint.find(tracked.workdir, '1050'),
  ):
    expected = tracked.trained.weights(path, 'posthoc:0.07')
    found = other.trained.weights(path, 'posthoc:0.07')
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[2], expected[2])


def test_refuses_to_rebuild_what_it_cannot(tracked, tmp_path):
  for std in ('0.0', '0.29', '1.0'):
    with pytest.raises(UserError, match=f'is {std}, expected 0 to 0.29'):
      tracked.weights(f'posthoc:{std}')
  with pytest.raises(UserError, match=r'needs 2 snapshots, .* has 0 up to'):
    tracked.weights('posthoc:0.1', '0')
  run = Tracked(tmp_path, stds=())
  run.save(1)
  message = r'no power-function EMA: train with ema\.power_stds=\(0'
  with pytest.raises(UserError, match=message):
    run.weights('posthoc:0.1')
