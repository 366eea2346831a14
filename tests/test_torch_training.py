"""The same training in PyTorch, by a plain loop over diffusers' network.

From the same weights, with the same images, timesteps and noise. It needs
`pip install -e '.[oracle]'`.
"""

import numpy as np
import pytest
import tensorflow as tf

from configs import default
from ddpm import rng
from ddpm.formats import diffusers as diffusers_format
from ddpm.nn import flat
from ddpm.training import step as step_lib

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

STEPS, BATCH, RATE, CLIP = 20, 8, 1e-3, 1.0
IMAGES = np.random.default_rng(0).integers(
    0, 256, [STEPS, BATCH, 16, 16, 3], np.uint8
)


def torch_network():
  torch.manual_seed(0)
  return diffusers.UNet2DModel(
      sample_size=16,
      block_out_channels=(32, 64),
      layers_per_block=1,
      down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
      up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
      norm_num_groups=8,
      norm_eps=1e-6,
      flip_sin_to_cos=False,
      freq_shift=1,
      attention_head_dim=None,
      downsample_padding=0,
  )


def torch_losses(network, abar):
  """Trains the network, and returns the losses."""
  adam = torch.optim.Adam(network.parameters(), lr=RATE, eps=1e-8)
  losses = []
  for step in range(STEPS):
    positions = tf.range(BATCH, dtype=tf.int64)
    keys = rng.fold_in(rng.fold_in(rng.key(0), step), positions)
    # The streams of an example's key: 0 for its timestep, 1 for its noise.
    u = rng.uniform(rng.fold_in(keys, 0), ()).numpy()
    t = torch.tensor((u * len(abar)).astype(np.int64))
    noise = rng.normal(rng.fold_in(keys, 1), (16, 16, 3)).numpy()
    noise = torch.tensor(noise).permute(0, 3, 1, 2)
    x0 = torch.tensor(IMAGES[step]).permute(0, 3, 1, 2) / 127.5 - 1.0
    a = torch.tensor(abar, dtype=torch.float32)[t].view(-1, 1, 1, 1)
    output = network(a.sqrt() * x0 + (1 - a).sqrt() * noise, t).sample
    loss = torch.nn.functional.mse_loss(output, noise)
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    adam.step()
    losses.append(loss.item())
  return np.array(losses)


def our_losses(config, model, params):
  """Trains our network; returns the losses and the weights."""
  layout = flat.Layout(model)
  config.data.random_flip = False
  config.optimizer.learning_rate = RATE
  config.optimizer.warmup_steps = 0
  config.train.batch_size = BATCH
  assert config.optimizer.clip_norm == CLIP and config.model.dropout == 0
  step = step_lib.TrainStep.from_config(config, model, layout)
  state = step.initial_state(params)
  gradient = step_lib.compile_gradient(
      step, state.specs(), replica_batch_size=BATCH, jit_compile=False
  )
  update = step_lib.compile_update(step, state.specs(), jit_compile=False)
  losses = []
  for images in IMAGES:
    batch = {
        'image': tf.constant(images),
        'label': tf.zeros([BATCH], tf.int32),
        'position': tf.range(BATCH, dtype=tf.int64),
    }
    inputs = state.read(*step_lib.INPUTS)
    packed = gradient(inputs, tf.constant(0.0), batch)
    metrics = update(state.handles(), packed)
    losses.append(float(metrics['loss']))
  return np.array(losses), state.params.numpy()


def test_twenty_adam_steps_are_pytorchs(tmp_path):
  network = torch_network()
  network.save_pretrained(tmp_path / 'before')
  config, model, params = diffusers_format.load(
      str(tmp_path / 'before'), default.get_config()
  )
  abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  expected = torch_losses(network, abar)
  network.save_pretrained(tmp_path / 'after')
  _, _, after = diffusers_format.load(
      str(tmp_path / 'after'), default.get_config()
  )

  losses, weights = our_losses(config, model, params)
  # They learn: this is no comparison of two that stand still.
  assert expected[-5:].mean() < 0.8 * expected[0]
  np.testing.assert_allclose(losses, expected, rtol=1e-3)
  difference = np.linalg.norm(weights - after) / np.linalg.norm(after)
  assert difference < 1e-3
  # And in relation to how far they went.
  moved = np.linalg.norm(weights - after) / np.linalg.norm(after - params)
  assert moved < 1e-3
