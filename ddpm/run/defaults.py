"""Every knob there is, at the values of Ho et al. 2020 for CIFAR-10."""

from ml_collections import config_dict


def get_config():
  """The configuration that all others start from."""
  config = config_dict.ConfigDict()

  # All randomness (weights, order of the images, flips, timesteps, noise,
  # dropout) is a function of the seed, the step and the position in the batch.
  config.seed = 0
  # Bit-identical runs on the same hardware and topology. Costs nothing on a CPU
  # (measured); GPUs take slower algorithms for it (not measured).
  config.deterministic = False
  # float32 | mixed_bfloat16 | mixed_float16
  config.precision = 'float32'
  # Compile the network with XLA; None for where it pays: on GPUs and TPUs, but
  # not on a CPU, where TensorFlow's own kernels are quicker (measured).
  config.jit_compile = config_dict.placeholder(bool)

  config.data = data = config_dict.ConfigDict()
  # mnist5k (ships with the package) | tfds:NAME
  data.name = 'tfds:cifar10'
  data.data_dir = '~/tensorflow_datasets'
  data.split = 'train'
  # Height and width in pixels. Images of another size are cropped to their
  # central square and resized.
  data.image_size = 32
  # Mirror each image, left to right, with probability 1/2.
  data.random_flip = True

  config.model = model = config_dict.ConfigDict()
  model.image_channels = 3
  model.channels = 128
  model.channel_multipliers = (1, 2, 2, 2)
  model.num_res_blocks = 2
  # Heights of feature maps, in the U-Net's pixels (image_size / patch_size).
  model.attention_resolutions = (16,)
  # Heads of each attention, or, if head_channels is not 0, one for each so
  # many channels.
  model.num_heads = 1
  model.head_channels = 0
  model.dropout = 0.1
  # Classes to condition on; 0 for none.
  model.num_classes = 0
  model.norm_groups = 32
  model.norm_epsilon = 1e-6
  # Time scales and shifts what is normalised; else it is added before that.
  model.scale_shift_norm = False
  # Down and up by: conv (Ho) | block (a residual block that resamples, as in
  # BigGAN).
  model.resample = 'conv'
  # ddpm | ddpmpp (Song et al. 2021, as in EDM: sums of two branches scaled by
  # sqrt(1/2), attention on the way up after a level's last block alone,
  # classes enter with the time)
  model.variant = 'ddpm'
  # Initial weights: ho | torch (PyTorch's default, exactly 0 where Ho has
  # 1e-10) | edm
  model.init = 'ho'
  # Pixels folded into channels before the U-Net (space to depth); 1 for none.
  model.patch_size = 1

  # Details in which PyTorch's code differs from Ho's: for networks that are
  # converted, or that follow a paper to the digit.
  model.compat = compat = config_dict.ConfigDict()
  # Of the convolution that goes down: same (TensorFlow's, on an even size one
  # pixel right and below) | symmetric (PyTorch's)
  compat.downsample_padding = 'same'
  # Sinusoids of the time, i = 0, ..., half - 1: sin_cos | cos_sin, of
  # t * 10000^(-i / (half - embedding_shift)).
  compat.embedding_order = 'sin_cos'
  compat.embedding_shift = 1

  config.diffusion = diffusion = config_dict.ConfigDict()
  diffusion.num_timesteps = 1000
  # linear | cosine | edm (any noise level, sigma; Karras et al. 2022)
  diffusion.schedule = 'linear'
  diffusion.beta_start = 1e-4
  diffusion.beta_end = 0.02
  # Of the schedule edm: the data's standard deviation.
  diffusion.sigma_data = 0.5
  # What the network predicts: eps | x0 | v; edm with the schedule edm.
  diffusion.prediction = 'eps'
  # Tell the network t * 1000 / num_timesteps.
  diffusion.rescale_timesteps = False
  # simple | min_snr | vlb | hybrid (simple + vlb / 1000)
  diffusion.loss = 'simple'
  diffusion.min_snr_gamma = 5.0
  # Noise levels in training: uniform | loss_second_moment (timesteps by their
  # last losses) | lognormal (of the schedule edm, with the mean and standard
  # deviation of ln sigma below)
  diffusion.timesteps = 'uniform'
  diffusion.log_sigma_mean = -1.2
  diffusion.log_sigma_std = 1.2
  # Of a step back: fixedlarge | fixedsmall | learned_range (with the losses
  # hybrid and vlb)
  diffusion.variance = 'fixedlarge'

  config.optimizer = optimizer = config_dict.ConfigDict()
  optimizer.learning_rate = 2e-4
  # The rate rises linearly from 0 over the first warmup_steps.
  optimizer.warmup_steps = 5000
  # constant | cosine | linear: to 0 at decay_steps | inverse_sqrt: as
  # (step / decay_steps)^(-1/2) from decay_steps on.
  optimizer.decay = 'constant'
  optimizer.decay_steps = 800_000
  optimizer.beta1 = 0.9
  optimizer.beta2 = 0.999
  optimizer.epsilon = 1e-8
  # Largest norm of the gradient; 0 for no clipping.
  optimizer.clip_norm = 1.0
  # global: the norm of the whole batch's gradient, on any number of devices.
  # per_replica: Ho's code, where each of N devices clips its own part of the
  # gradient to clip_norm / N, so that results depend on N.
  optimizer.clip = 'global'

  config.ema = ema = config_dict.ConfigDict()
  # One average of the weights for each decay; the first one is sampled from.
  ema.decays = (0.9999,)
  # Averages whose length is a share of the training so far (EDM2): relative
  # standard deviations, (0.05, 0.10), say. From two of them, and the
  # checkpoints that are kept, --weights=posthoc:STD makes any other.
  ema.power_stds = ()
  # While the run is short the averages of `decays` are, too: their half-life
  # is at most this share of it (EDM: 0.05); 0 for none of this.
  ema.rampup_ratio = 0.0

  config.train = train = config_dict.ConfigDict()
  # Images in a step, over all devices and hosts.
  train.batch_size = 128
  # Parts that a device works its share off in, one after the other: a large
  # batch in little memory. Changes no number but by rounding.
  train.accumulation_steps = 1
  # Compute blocks again in the backward pass instead of keeping what they
  # held: less memory, more time. Changes no number but by rounding.
  train.remat = False
  # Share of the images whose class is withheld, for classifier-free guidance.
  train.label_dropout = 0.0
  train.num_steps = 800_000
  # Steps that run in one call, without a return to Python.
  train.steps_per_loop = 100
  train.log_every_steps = 100
  train.checkpoint_every_steps = 5000
  # A grid of images to WORKDIR/samples; 0 for never.
  train.sample_every_steps = 10_000
  # Newest checkpoints that are kept, ...
  train.keep_last = 3
  # ... and one every so many steps that is kept for good; 0 for none.
  train.keep_every_steps = 100_000
  # From SIGTERM or Ctrl-C to the end of the process, which saves meanwhile.
  train.grace_seconds = 30
  # float16 only: steps in a row that may overflow before the run stops.
  train.max_skipped_steps = 50

  config.sample = sample = config_dict.ConfigDict()
  # What the sampler program and the trainer's grids use: ancestral | ddim |
  # dpmpp_2m | heun. Quick; what papers report is --sampler=ancestral.
  sample.sampler = 'dpmpp_2m'
  sample.steps = 25
  # Noise that ddim and dpmpp_2m add on the way: 0 for none, 1 for as much as
  # ancestral.
  sample.eta = 0.0
  # Spacing of the steps of dpmpp_2m and heun (Karras et al. 2022), in sigma
  # (sigma / alpha, if the schedule is not edm): the last step's and the
  # first's, as far as the schedule goes, and how they crowd at low noise.
  sample.sigma_min = 0.002
  sample.sigma_max = 80.0
  sample.rho = 7.0

  config.distribute = distribute = config_dict.ConfigDict()
  # auto | one_device | mirrored | multi_worker | tpu
  distribute.strategy = 'auto'
  # Split the CPU into this many devices, to try a topology; 0 for no split.
  # Without GPUs samplers then take a device a core.
  distribute.virtual_devices = 0

  return config
