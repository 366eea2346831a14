"""Saved, kept, found, restored, refused."""

from conftest import Network
import numpy as np
import pytest
import tensorflow as tf

from ddpm import checkpoint
from ddpm import state as state_lib
from ddpm.errors import UserError


def make(workdir, network, *, decays=(0.9,), writes=True, keep_every=0):
  state = state_lib.State(
      network.params, ema_decays=decays, use_loss_scale=False
  )
  return state, checkpoint.Checkpointer(
      str(workdir),
      state,
      network.layout,
      writes=writes,
      keep_last=2,
      keep_every_steps=keep_every,
  )


def test_restores_every_part(tmp_path, network):
  state, checkpoints = make(tmp_path, network)
  assert checkpoints.restore() == 0
  for i, variable in enumerate(tf.nest.flatten(state.variables())):
    variable.assign(tf.fill(variable.shape, tf.cast(i + 1, variable.dtype)))
  checkpoints.save(7)
  other, checkpoints = make(tmp_path, network, writes=False)
  assert checkpoints.restore() == 7
  tf.nest.map_structure(
      np.testing.assert_array_equal, other.read(), state.read()
  )


def test_keeps_the_newest_and_every_so_many(tmp_path, network):
  _, checkpoints = make(tmp_path, network, keep_every=20)
  for step in range(10, 70, 10):
    checkpoints.save(step)
  assert sorted(checkpoint.find_all(str(tmp_path))) == [20, 40, 50, 60]
  assert checkpoint.find(str(tmp_path), 'latest').endswith('ckpt-60')
  assert checkpoint.find(str(tmp_path), '20').endswith('kept/ckpt-20')
  with pytest.raises(UserError, match='has the steps: 20, 40, 50, 60'):
    checkpoint.find(str(tmp_path), '30')


def test_only_the_writer_writes(tmp_path, network):
  _, checkpoints = make(tmp_path, network, writes=False)
  checkpoints.save(3)
  assert not list(tmp_path.iterdir())


def test_a_lost_index_of_checkpoints_is_no_fresh_start(tmp_path, network):
  _, checkpoints = make(tmp_path, network)
  checkpoints.save(5)
  (tmp_path / 'checkpoints' / 'checkpoint').unlink()
  assert make(tmp_path, network)[1].restore() == 5


def test_reads_one_vector_of_weights(tmp_path, network):
  state, checkpoints = make(tmp_path, network, decays=(0.9, 0.5))
  state.ema['0.5'].assign(network.params * 2)
  state.step.assign(3)
  checkpoints.save(3)
  path = checkpoint.find(str(tmp_path), 'latest')
  step, weights = checkpoint.read_weights(path, network.layout, '0.5')
  assert step == 3
  np.testing.assert_array_equal(weights, network.params * 2)
  _, weights = checkpoint.read_weights(path, network.layout, 'raw')
  np.testing.assert_array_equal(weights, network.params)
  with pytest.raises(UserError, match=r'has no ema/0\.7'):
    checkpoint.read_weights(path, network.layout, '0.7')


def test_refuses_another_model_and_says_what_differs(tmp_path, network):
  make(tmp_path, network)[1].save(3)
  other = Network(channels=16)
  differs = r'time_dense1/kernel is \[8, 32\] there, \[16, 64\] in the model'
  with pytest.raises(UserError, match='is of another model: ' + differs):
    make(tmp_path, other)[1].restore()


def test_refuses_a_checkpoint_without_the_average(tmp_path, network):
  make(tmp_path, network)[1].save(3)
  _, checkpoints = make(tmp_path, network, decays=(0.9, 0.99))
  with pytest.raises(UserError, match=r'no ema/0\.99: it cannot be resumed'):
    checkpoints.restore()


def test_refuses_what_is_no_checkpoint_of_ours(tmp_path, network):
  (tmp_path / 'checkpoints').mkdir()
  path = str(tmp_path / 'checkpoints' / 'ckpt-1')
  tf.train.Checkpoint(x=tf.Variable(1.0)).write(path)
  with pytest.raises(UserError, match='is not a checkpoint of ddpm'):
    make(tmp_path, network)[1].restore()


def test_an_empty_workdir_has_nothing_to_sample(tmp_path):
  with pytest.raises(UserError, match='has no checkpoints: train first'):
    checkpoint.find(str(tmp_path), 'latest')
