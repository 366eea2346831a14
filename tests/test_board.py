"""What TensorBoard reads of what is written for it, without its help."""

import numpy as np
from support import tiny_config
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata
import tensorflow as tf

from ddpm.run import board


def read(directory):
  """What TensorBoard finds in a folder."""
  found = event_accumulator.EventAccumulator(str(directory))
  return found.Reload()


def curve(found, tag):
  """Values by step. TensorBoard reads files of one second in any order."""
  events = sorted(found.Tensors(tag), key=lambda event: event.step)
  return {e.step: tf.make_ndarray(e.tensor_proto).item() for e in events}


def test_after_a_kill_each_step_is_there_once(tmp_path):
  folder = tmp_path / 'lr=[1]'  # No pattern.
  first = board.TensorBoard(str(folder), first_step=0)
  first.config(1, tiny_config())
  for step in range(1, 6):
    first.scalars(step, {'loss': 1.0, 'learning_rate': 0.1})
  first.images(5, np.zeros([4, 3, 3, 1], np.uint8), 1.0)
  first.close()
  # Killed in the middle of an event, after the checkpoint of step 3.
  (file,) = folder.iterdir()
  file.write_bytes(file.read_bytes()[:-5])
  second = board.TensorBoard(str(folder), first_step=3)
  second.config(4, tiny_config())
  for step in range(4, 7):
    second.scalars(step, {'loss': 2.0})
  second.close()
  found = read(folder)
  steps = sorted(event.step for event in found.Tensors('loss'))
  assert steps == [1, 2, 3, 4, 5, 6]
  assert list(curve(found, 'loss').values()) == [1, 1, 1, 2, 2, 2]
  # Of what is not written again, nothing is left either.
  assert list(curve(found, 'learning_rate')) == [1, 2, 3]
  assert 'samples' not in found.Tags()['tensors']
  assert {event.step for event in found.Tensors('config')} == {1, 4}


def test_after_a_kill_before_the_first_checkpoint_all_is_done_again(tmp_path):
  folder = tmp_path / 'board'
  first = board.TensorBoard(str(folder), first_step=0)
  first.scalars(1, {'loss': 1.0})
  first.close()
  board.TensorBoard(str(folder), first_step=0).close()
  assert not read(folder).Tags()['tensors']


def test_scalars_and_pictures_have_their_plugins(tmp_path):
  log = board.TensorBoard(str(tmp_path))
  log.scalars(4, {'loss': 0.5})
  log.images(4, np.zeros([4, 3, 3, 1], np.uint8), 1.5)
  log.close()
  found = read(tmp_path)
  plugins = found.summary_metadata
  for tag, value in (('loss', 0.5), ('sample_seconds', 1.5)):
    assert plugins[tag].plugin_data.plugin_name == 'scalars'
    assert curve(found, tag) == {4: value}
  assert plugins['samples'].plugin_data.plugin_name == 'images'
  (event,) = found.Tensors('samples')
  height, width, picture = tf.make_ndarray(event.tensor_proto)
  assert (height, width) == (b'12', b'12') and picture[1:4] == b'PNG'


def test_a_config_is_text_and_hyperparameters(tmp_path):
  log = board.TensorBoard(str(tmp_path))
  log.config(1, tiny_config())
  log.close()
  found = read(tmp_path)
  plugin = found.summary_metadata['config'].plugin_data.plugin_name
  (event,) = found.Tensors('config')
  text = tf.make_ndarray(event.tensor_proto).item().decode()
  assert plugin == 'text' and '    train.batch_size: 8\n' in text
  content = found.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data
  info = metadata.parse_session_start_info_plugin_data(content.content)
  assert info.hparams['train.batch_size'].number_value == 8
  assert info.hparams['optimizer.decay'].string_value == 'cosine'
  assert info.hparams['data.random_flip'].bool_value
  assert info.hparams['ema.decays'].string_value == '(0.995,)'
