"""50 DDIM steps against diffusers' DDIMPipeline, with the same weights.

  python tests/benchmarks/sampling.py

A U-Net of 32 channels (1, 2, 2), 2 blocks, attention at 8, on 32 x 32 x 1, in
float32, batch 64, ours split over the cores as ddpm.sample does. Ours, theirs,
and theirs compiled take turns; prints the images/s of each turn, and the ratio
of the medians. Nothing else should run meanwhile. It needs
`pip install -e '.[test,oracle]'`.
"""

import statistics
import tempfile
import time

import diffusers
import numpy as np
import torch

from configs import default
from ddpm.diffusion import solvers
from ddpm.formats import diffusers as diffusers_format
from ddpm.nn import flat
from ddpm.run import build
from ddpm.runtime import strategy as strategy_lib
from ddpm.sampling import sampler as sampler_lib

_BATCH, _STEPS, _TURNS = 64, 50, 3


def network():
  """The U-Net, random weights, as diffusers has it."""
  torch.manual_seed(0)
  return diffusers.UNet2DModel(
      sample_size=32,
      in_channels=1,
      out_channels=1,
      block_out_channels=(32, 64, 64),
      layers_per_block=2,
      down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D'),
      up_block_types=('AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'),
      norm_num_groups=32,
      norm_eps=1e-6,
      flip_sin_to_cos=False,
      freq_shift=1,
      attention_head_dim=None,
      downsample_padding=0,
  )


def theirs(unet):
  pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
  pipeline.set_progress_bar_config(disable=True)

  def draw():
    images = pipeline(
        batch_size=_BATCH, num_inference_steps=_STEPS, output_type='np'
    )
    assert images.images.shape == (_BATCH, 32, 32, 1)

  return draw


def ours(unet):
  strategy = strategy_lib.local_strategy(_BATCH)
  with tempfile.TemporaryDirectory() as directory:
    unet.save_pretrained(directory)
    config, model, params = diffusers_format.load(
        directory, default.get_config()
    )
  sampler = sampler_lib.Sampler(
      model,
      flat.Layout(model),
      build.make_process(config),
      solvers.SamplerSpec('ddim', _STEPS),
      batch_size=_BATCH // strategy.num_replicas_in_sync,
      strategy=strategy,
      jit_compile=build.jit_compile(config, strategy),
  )
  seeds = np.arange(_BATCH)
  return lambda: list(sampler(params, seeds))


def main():
  unet = network().eval()
  contestants = {
      'ddpm': ours(unet),
      'diffusers': theirs(unet),
  }
  compiled = network().eval()
  compiled.load_state_dict(unet.state_dict())
  compiled.compile()
  contestants['diffusers, compiled'] = theirs(compiled)
  for name, draw in contestants.items():
    started = time.monotonic()
    draw()
    print(f'{name}: first call {time.monotonic() - started:.1f} s', flush=True)
  speeds = {name: [] for name in contestants}
  for _ in range(_TURNS):
    for name, draw in contestants.items():
      started = time.monotonic()
      draw()
      speeds[name].append(_BATCH / (time.monotonic() - started))
      print(f'{name}: {speeds[name][-1]:.2f} images/s', flush=True)
  medians = {name: statistics.median(each) for name, each in speeds.items()}
  for name in list(medians)[1:]:
    print(f'ddpm / {name}: {medians["ddpm"] / medians[name]:.2f}')


if __name__ == '__main__':
  main()
