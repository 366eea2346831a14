"""Properties of all inputs, tried on random ones by Hypothesis.

  HYPOTHESIS_EXAMPLES=500 python -m pytest tests/test_properties.py

tries more of them. One that fails is printed, as small as it can be made.
"""

import contextlib
import json
import os
import re

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from configs import default
from ddpm import sample
from ddpm.formats import diffusers
from ddpm.nn import flat
from ddpm.run import build
from ddpm.run import checkpoint
from ddpm.run import config as config_lib
from ddpm.runtime import targets
from ddpm.runtime import topology
from ddpm.runtime.errors import UserError
from ddpm.sampling import sampler as sampler_lib
from ddpm.training import state as state_lib
from ddpm.training import step as step_lib
from ddpm.training import trainer as trainer_lib

_EXAMPLES = int(os.environ.get('HYPOTHESIS_EXAMPLES', 12))


def examples(times=1):
  return hypothesis.settings(
      max_examples=times * _EXAMPLES,
      # A run is a function of the code alone.
      derandomize='HYPOTHESIS_EXAMPLES' not in os.environ,
      database=None,
      deadline=None,
      suppress_health_check=list(hypothesis.HealthCheck),
  )


# A small config that works.
_BASE = {
    'precision': 'float32',
    'data.image_size': 8,
    'data.random_flip': True,
    'model.image_channels': 1,
    'model.channels': 4,
    'model.channel_multipliers': (1, 2),
    'model.num_res_blocks': 1,
    'model.attention_resolutions': (4,),
    'model.norm_groups': 2,
    'diffusion.num_timesteps': 20,
    'train.batch_size': 2,
    'sample.steps': 3,
}

# What it is changed in: values that work, that never do, and that do with some
# of the others.
_VALUES = {
    'precision': ['tf32', 'mixed_bfloat16', 'mixed_float16', 'float64'],
    'data.image_size': [1, 2, 6, 16, (4, 8), (8, 8, 8), 0],
    'model.image_channels': [0, 2, 3, 4],
    'model.channels': [0, 1, 2, 3, 6, 8],
    'model.channel_multipliers': [(1,), (2, 1), (1, 1, 2), (), (0, 1)],
    'model.num_res_blocks': [0, 2],
    'model.attention_resolutions': [(), (8,), (8, 4)],
    'model.num_heads': [0, 2, 3],
    'model.head_channels': [-1, 1, 2, 4],
    'model.dropout': [-0.1, 0.0, 0.5, 1.0],
    'model.num_classes': [-1, 1, 3],
    'model.norm_groups': [0, 1, 3, 4],
    'model.norm_epsilon': [0.0, 1e-3],
    'model.scale_shift_norm': [True],
    'model.resample': ['block', 'fft'],
    'model.variant': ['ddpmpp', 'adm'],
    'model.init': ['torch', 'edm', 'he'],
    'model.patch_size': [0, 2, 3],
    'model.compat.downsample_padding': ['symmetric', 'valid'],
    'model.compat.embedding_order': ['cos_sin', 'tan'],
    'model.compat.embedding_shift': [0, 2],
    'diffusion.num_timesteps': [0, 1, 2],
    'diffusion.schedule': ['cosine', 'edm', 'sigmoid'],
    'diffusion.beta_start': [0.0, 0.01, 1.0],
    'diffusion.beta_end': [0.0, 0.5, 1.0, 2.0],
    'diffusion.sigma_data': [0.0, 1.0],
    'diffusion.prediction': ['x0', 'v', 'edm', 'noise'],
    'diffusion.rescale_timesteps': [True],
    'diffusion.loss': ['min_snr', 'vlb', 'hybrid', 'l1'],
    'diffusion.min_snr_gamma': [-1.0, 0.0, 1.0],
    'diffusion.timesteps': ['loss_second_moment', 'lognormal', 'all'],
    'diffusion.log_sigma_mean': [0.0, 3.0],
    'diffusion.log_sigma_std': [-1.0, 0.0, 2.0],
    'diffusion.variance': ['fixedsmall', 'learned_range', 'learned'],
    'optimizer.learning_rate': [-1.0, 0.0, 1.0, float('nan'), float('inf')],
    'optimizer.warmup_steps': [-1, 0],
    'optimizer.decay': ['cosine', 'linear', 'inverse_sqrt', 'step'],
    'optimizer.decay_steps': [0, 1],
    'optimizer.beta1': [-0.1, 0.0, 1.0],
    'optimizer.beta2': [0.0, 1.0],
    'optimizer.epsilon': [0.0, 1e-50, 1.0],
    'optimizer.clip_norm': [-1.0, 0.0],
    'optimizer.clip': ['per_replica', 'value'],
    'ema.decays': [(), (0.0,), (1.0,), (0.9, 0.9), (0.9, 0.99), (-0.5,)],
    'ema.power_stds': [(0.05, 0.1), (0.0,), (0.5,)],
    'ema.rampup_ratio': [-1.0, 0.05],
    'train.batch_size': [0, 1, 4],
    'train.accumulation_steps': [0, 2],
    'train.remat': [True],
    'train.label_dropout': [-0.1, 0.1, 1.0],
    'sample.sampler': ['ancestral', 'ddim', 'heun', 'euler'],
    'sample.steps': [0, 1, 2, 20, 21],
    'sample.eta': [-1.0, 0.5, 1.0, 2.0],
    'sample.sigma_min': [0.0, 1e-9, 100.0],
    'sample.sigma_max': [1e-9, 1e9],
    'sample.rho': [0.0, 1.0],
}

# A few at a time: among many, one that is refused hides the others.
_CHANGES = st.lists(
    st.sampled_from([(k, v) for k, values in _VALUES.items() for v in values]),
    max_size=3,
    unique_by=lambda change: change[0],
).map(dict)


def made(changes):
  config = default.get_config()
  config.update_from_flattened_dict(_BASE | changes)
  return config.lock()


@pytest.fixture
def eagerly():
  """Nothing is traced, which takes longer than computing on tiny images."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


@examples()
@hypothesis.given(changes=_CHANGES)
def test_a_config_trains_and_samples_or_is_refused(eagerly, changes):
  """Every one that validation takes; of the others it names a setting."""
  try:
    config = made(changes)
  except (TypeError, ValueError):
    return  # By ConfigDict, on the command line, too.
  try:
    config_lib.validate(config)
  except UserError as e:
    assert re.match(r'config\.\w+(\.\w+)* ', str(e)), str(e)
    return
  try:
    images = train_and_sample(config)
  except UserError as e:  # What depends on the devices.
    assert 'config.train.accumulation_steps' in str(e)
    return
  assert images.dtype == np.uint8


def train_and_sample(config):
  """A step of a config, then two images, of which all numbers are finite."""
  size = trainer_lib.replica_batch_size(config, 1)
  model = build.make_model(config)
  layout = flat.Layout(model)
  train_step = step_lib.TrainStep.from_config(config, model, layout)
  params = flat.flatten(model.trainable_variables)
  state = train_step.initial_state(params)
  batch = {
      'image': tf.random.stateless_uniform(
          [size, *model.image_shape], (0, 0), 0, 256, tf.int32
      ),
      'label': tf.zeros([size], tf.int32),
      'position': tf.range(size, dtype=tf.int64),
  }
  batch['image'] = tf.cast(batch['image'], tf.uint8)
  values = state.read()
  packed = train_step.gradient(values, tf.constant(0.0), batch)
  after, metrics = train_step.update(values, packed)
  # In float16 the first gradients may overflow, which lowers the loss scale.
  if config.precision != 'mixed_float16':
    assert np.isfinite(metrics['loss']) and not metrics['skipped_steps']
  assert after['step'] == 1
  for name in ('params', 'adam_m', 'adam_v'):
    assert np.isfinite(after[name]).all(), name
  spec = build.make_sampler_spec(config)
  process = build.make_process(config)
  sampler = sampler_lib.Sampler(
      model, layout, process, spec, batch_size=2, jit_compile=False
  )
  seeds = np.arange(2)
  images, finite = sampler.draw(after['params'], seeds, sampler.labels(seeds))
  assert np.all(finite)
  return images.numpy()


@examples(10)
@hypothesis.given(changes=_CHANGES)
def test_a_config_is_read_back_from_a_workdir(tmp_path_factory, changes):
  try:
    config = made(changes)
    config_lib.validate(config)
  except (TypeError, ValueError, UserError):
    return
  workdir = str(tmp_path_factory.getbasetemp())
  config_lib.save(config, workdir)
  assert config_lib.load(workdir).to_dict() == config.to_dict()
  assert config_lib.continued(config, workdir).to_dict() == config.to_dict()


def test_each_setting_of_the_network_and_its_training_is_tried():
  groups = ('model', 'diffusion', 'optimizer', 'ema', 'sample')
  fields = default.get_config().to_dict()
  names = {f'{group}.{name}' for group in groups for name in fields[group]}
  assert names - {'model.compat'} <= set(_VALUES)


_RANGES = st.lists(
    st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 40)),
    min_size=1,
    max_size=5,
)


@examples(20)
@hypothesis.given(ranges=_RANGES)
def test_seeds_are_read_as_written(ranges):
  ranges = [(a, min(a + n, 2**63 - 1)) for a, n in ranges]
  expected = [seed for a, b in ranges for seed in range(a, b + 1)]
  text = ','.join(f'{a}-{b}' if a != b else f'{a}' for a, b in ranges)
  if len(set(expected)) < len(expected):
    with pytest.raises(UserError, match='expected each seed once'):
      sample.parse_seeds(text)
  else:
    assert sample.parse_seeds(text).tolist() == expected


@examples(20)
@hypothesis.given(
    text=st.one_of(st.text(), st.text(alphabet='0123456789,- ')),
    classes=st.integers(0, 12),
)
def test_any_text_is_read_or_refused(text, classes):
  """As seeds, classes, an interpolation, a topology."""
  seeds = np.arange(5)
  with contextlib.suppress(UserError):
    assert sample.parse_seeds(text).dtype == np.int64
  with contextlib.suppress(UserError):
    labels = sample.parse_labels(text, seeds, classes)
    if labels is not None:
      assert labels.shape == (5,) and labels.max() < classes
  with contextlib.suppress(UserError):
    assert len(sample.parse_interpolation(text)['fractions']) > 1
  with contextlib.suppress(ValueError):
    topology.parse(text)
  with contextlib.suppress(ValueError):
    targets.parse(text)


@examples()
@hypothesis.given(data=st.data())
def test_a_state_is_read_back_from_a_checkpoint(tmp_path_factory, data):
  size = data.draw(st.integers(1, 9))
  names = data.draw(st.sets(st.sampled_from(['0.9', '0.999', 'power:0.05'])))
  numbers = st.floats(
      -(2.0**60), 2.0**60, width=32, allow_subnormal=False
  )

  def state(values):
    made = state_lib.State(tf.zeros([size]), ema_names=sorted(names))
    vectors = [made.params, made.adam_m, made.adam_v, *made.ema.values()]
    for vector, value in zip(vectors, values):
      vector.assign(value)
    made.step.assign(7)
    return made

  vector = st.lists(numbers, min_size=size, max_size=size)
  count = 3 + len(names)
  written = state(data.draw(st.lists(vector, min_size=count, max_size=count)))
  read = state(np.zeros([count, size]))
  read.step.assign(0)
  workdir = str(tmp_path_factory.mktemp('state'))
  for target in (written, read):
    checkpoints = checkpoint.Checkpointer(
        workdir, target, _Layout(size), writes=True, keep_last=1,
        keep_every_steps=0,
    )  # fmt: skip
    assert checkpoints.restore() == (0 if target is written else 7)
    if target is written:
      checkpoints.save(7)
      checkpoints.wait()
  tf.nest.map_structure(
      np.testing.assert_array_equal, read.read(), written.read()
  )


class _Layout:
  """Stands for `flat.Layout` of one vector."""

  def __init__(self, size):
    self.size = size

  def to_json(self):
    return json.dumps([['vector', [self.size]]])


@examples()
@hypothesis.given(changes=_CHANGES)
def test_diffusers_and_back_is_the_same_network(
    eagerly, tmp_path_factory, changes
):
  """Whatever its settings are called there."""
  try:
    config = made({'model.init': 'torch'} | changes)
    config_lib.validate(config)
  except (TypeError, ValueError, UserError):
    return
  model = build.make_model(config)
  params = flat.flatten(model.trainable_variables)
  # Not the initial ones, with which every block is the identity.
  params += 0.1 * tf.random.stateless_normal(params.shape, (1, 2))
  folder = str(tmp_path_factory.mktemp('diffusers'))
  try:
    diffusers.save(folder, config, model, params.numpy())
  except UserError as e:
    assert re.search(r'(model|diffusion|train)\.', str(e)), str(e)
    return
  _, back, weights = diffusers.load(folder, config)
  np.testing.assert_allclose(
      output_of(back, tf.constant(weights)), output_of(model, params),
      rtol=1e-3, atol=1e-3,
  )  # fmt: skip


def output_of(model, params):
  """What a network says of two random images, with classes if it has some."""
  images = tf.random.stateless_normal([2, *model.image_shape], (3, 4))
  labels = tf.zeros([2], tf.int32) if model.num_classes else None
  output, _ = model.stateless_call(
      flat.Layout(model).split(params), [], images, tf.constant([0.0, 7.0]),
      labels=labels,
  )  # fmt: skip
  return tf.cast(output, tf.float32)
