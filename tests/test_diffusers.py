"""Networks and processes of diffusers, against ours of the same weights."""

import numpy as np
import pytest
import tensorflow as tf

from configs import default
from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import solvers
from ddpm.formats import diffusers as diffusers_format
from ddpm.nn import flat
from ddpm.nn.guidance import guided_network
from ddpm.run import build
from ddpm.sampling import sampler as sampler_lib

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

_HO = {
    'sample_size': 32,
    'block_out_channels': (128, 256, 256, 256),
    'down_block_types': (
        'DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D',
    ),
    'up_block_types': (
        'UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D',
    ),
    'norm_eps': 1e-6,
    'flip_sin_to_cos': False,
    'freq_shift': 1,
    'attention_head_dim': None,
    'downsample_padding': 0,
}  # fmt: skip

# Their own defaults, but for the size.
_DEFAULTS = {
    'sample_size': 16,
    'block_out_channels': (32, 64),
    'down_block_types': ('AttnDownBlock2D', 'AttnDownBlock2D'),
    'up_block_types': ('AttnUpBlock2D', 'AttnUpBlock2D'),
}

_CLASSES = {
    'sample_size': 16,
    'block_out_channels': (32, 32, 64),
    'down_block_types': (
        'ResnetDownsampleBlock2D', 'AttnDownBlock2D', 'DownBlock2D',
    ),
    'up_block_types': ('ResnetUpsampleBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    'layers_per_block': 1,
    'num_class_embeds': 10,
    'resnet_time_scale_shift': 'scale_shift',
    'attn_norm_num_groups': 32,
    'downsample_type': 'resnet',
    'upsample_type': 'resnet',
}  # fmt: skip

_GREY = {
    'sample_size': 28,
    'in_channels': 1,
    'out_channels': 1,
    'block_out_channels': (16, 32, 32),
    'down_block_types': ('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
    'up_block_types': ('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    'norm_num_groups': 8,
    'layers_per_block': 1,
}

_NETWORKS = {
    'ho': _HO, 'defaults': _DEFAULTS, 'classes': _CLASSES, 'grey': _GREY,
}  # fmt: skip


def make_unet(**arguments):
  """A UNet2DModel whose weights are all random, those of its norms too."""
  torch.manual_seed(0)
  unet = diffusers.UNet2DModel(**arguments).eval()
  with torch.no_grad():
    for parameter in unet.parameters():
      parameter += 0.05 * torch.randn_like(parameter)
  return unet


def inputs(unet):
  config = unet.config
  shape = (2, config.sample_size, config.sample_size, config.in_channels)
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  return x, [17, 801], [3, 7] if config.num_class_embeds else None


def their_output(unet):
  x, t, labels = inputs(unet)
  if labels:
    labels = torch.tensor(labels)
  with torch.no_grad():
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    y = unet(x, torch.tensor(t), class_labels=labels).sample
  return nhwc(y)


def our_output(unet, model, params):
  x, t, labels = inputs(unet)
  labels = tf.constant(labels or [0, 0])
  network = guided_network(model, flat.Layout(model), params, labels)
  return network(x, tf.constant(t, tf.float32)).numpy()


def relative_difference(a, b):
  assert a.shape == b.shape
  return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize('name', _NETWORKS)
def test_networks_agree(name, tmp_path):
  theirs = make_unet(**_NETWORKS[name])
  theirs.save_pretrained(tmp_path / 'unet')
  config, model, params = diffusers_format.load(tmp_path, default.get_config())
  assert len(params) == theirs.num_parameters()
  if name == 'ho':
    assert len(params) == 35_746_307
    assert config.model.to_dict() == (
        default.get_config().model.to_dict() | {'dropout': 0.0}
    )
  expected = their_output(theirs)
  difference = relative_difference(our_output(theirs, model, params), expected)
  print(f'{name}: {len(params):,} parameters, {difference:.1e}')
  assert difference < 1e-4

  diffusers_format.save(tmp_path / 'back', config, model, params)
  pipeline = diffusers.DDPMPipeline.from_pretrained(
      tmp_path / 'back', low_cpu_mem_usage=False
  )
  np.testing.assert_array_equal(their_output(pipeline.unet), expected)


@pytest.mark.parametrize(
    ('schedule', 'variance', 'prediction'),
    [
        ('linear', 'fixed_small', 'epsilon'),
        ('linear', 'fixed_small_log', 'epsilon'),
        ('squaredcos_cap_v2', 'fixed_large', 'v_prediction'),
        ('linear', 'learned_range', 'sample'),
    ],
)
def test_pipelines_agree(
    tmp_path, monkeypatch, schedule, variance, prediction
):
  arguments = _GREY
  if variance == 'learned_range':
    arguments = _GREY | {'out_channels': 2}
  before = diffusers.DDPMPipeline(
      make_unet(**arguments),
      diffusers.DDPMScheduler(
          num_train_timesteps=100,
          beta_schedule=schedule,
          variance_type=variance,
          prediction_type=prediction,
      ),
  )
  before.save_pretrained(tmp_path / 'before')
  config, model, params = diffusers_format.load(
      tmp_path / 'before', default.get_config()
  )
  network_difference = relative_difference(
      our_output(before.unet, model, params), their_output(before.unet)
  )
  process_difference = step_difference(before.scheduler, config, monkeypatch)
  print(
      f'{schedule}, {variance}, {prediction}: network'
      f' {network_difference:.1e}, step {process_difference:.1e}'
  )
  assert network_difference < 1e-4
  # Theirs computes betas, and products of them, in float32.
  assert process_difference < 1e-3

  diffusers_format.save(tmp_path / 'after', config, model, params)
  after = diffusers.DDPMPipeline.from_pretrained(
      tmp_path / 'after', low_cpu_mem_usage=False
  )
  assert step_difference(after.scheduler, config, monkeypatch) < 1e-3
  for key, value in before.unet.state_dict().items():
    assert torch.equal(after.unet.state_dict()[key], value), key


def step_difference(scheduler, config, monkeypatch):
  """One step back of the one and the other, from the same output, x and noise.

  x and noise are the same here, too.
  """
  process = build.make_process(config)
  rows = solvers.table(process, process.steps(25), sampler='ancestral')
  scheduler.set_timesteps(timesteps=rows['t'].tolist())
  row = {name: column[10:11] for name, column in rows.items()}
  outputs = 1 + (process.variance == 'learned_range')
  output = torch.randn(1, outputs, 8, 8)
  torch.manual_seed(0)
  x = torch.randn(1, 1, 8, 8)
  torch.manual_seed(0)
  expected = scheduler.step(output, int(row['t'][0]), x).prev_sample

  monkeypatch.setattr(rng, 'normal', lambda key, shape: tf.constant(nhwc(x)))
  ours, _ = sampler_lib.sample(
      lambda x, time: tf.constant(nhwc(output)),
      process,
      row,
      start=tf.constant(nhwc(x)),
      keys=rng.key([0]),
      constrain=pixels.clip,
  )
  return relative_difference(ours.numpy(), nhwc(expected))


def nhwc(tensor):
  return tensor.numpy().transpose(0, 2, 3, 1)
