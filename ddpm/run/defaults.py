"""All settings, with the values of Ho et al. 2020 for CIFAR-10."""

from ml_collections import config_dict


def get_config():
  """The config that all others start from."""
  config = config_dict.ConfigDict()

  # All randomness (weights, image order, flips, timesteps, noise, dropout) is a
  # function of the seed, the step and the position in the batch.
  config.seed = 0
  # Bit-identical runs on the same hardware and topology. Free on a CPU
  # (measured); GPUs use slower algorithms (not measured).
  config.deterministic = False
  # In which convolutions and matrix products are computed:
  #   tf32            float32; GPUs round to TF32, TPUs to bfloat16 for speed
  #   float32         float32 on every device, several times slower there
  #   mixed_bfloat16  half the memory for activations
  #   mixed_float16   the same for GPUs without bfloat16, with a loss scale
  # A CPU computes tf32 and float32 alike.
  config.precision = 'tf32'
  # Compile the network with XLA. None: on GPUs and TPUs, and on a CPU without
  # oneDNN, whose kernels are faster (measured; ddpm/runtime/devices.py).
  config.jit_compile = config_dict.placeholder(bool)
  # Write WORKDIR/report.html at the end of training, in a few seconds.
  config.report = True

  config.data = data = config_dict.ConfigDict()
  # mnist5k (ships with the package) | tfds:NAME | folder:PATH of image files,
  # which are converted to model.image_channels: 1 (grey), 3 (RGB) or 4 (RGBA) |
  # prepared:PATH, what ddpm.data prepare has written
  data.name = 'tfds:cifar10'
  # Of tensorflow-datasets.
  data.data_dir = '~/tensorflow_datasets'
  data.split = 'train'
  # Height and width in pixels: one number, or (height, width).
  data.image_size = config_dict.FieldReference(32, field_type=object)
  # How images of other sizes get there: center_crop | random_crop (of the
  # center crop, another part each time, of at least 0.8 of its sides) | stretch
  # | pad (black)
  data.resize = 'center_crop'
  # Classes of a folder's images: folders (its sub-folders, if it has some) |
  # prefix (file names up to the first underscore) | none
  data.labels = 'folders'
  # Names of the image and of the class in a data set of tensorflow-datasets.
  data.image_key = 'image'
  data.label_key = 'label'
  # Images without a class, if the model has classes: refuse | null (train them
  # as images whose class was dropped; needs train.label_dropout)
  data.unlabelled = 'refuse'
  # Broken images of a folder: stop | skip
  data.on_error = 'stop'
  # Rounds of the cipher that orders the images, anew in each epoch: 8 | 4 (of
  # older versions; prefers some orders). A resumed run keeps its own.
  data.shuffle_rounds = 8
  # Flip each image left to right with probability 1/2.
  data.random_flip = True

  config.model = model = config_dict.ConfigDict()
  model.image_channels = 3
  model.channels = 128
  # Of each level; fractions such as 1.5 as well.
  model.channel_multipliers = (1, 2, 2, 2)
  model.num_res_blocks = 2
  # Feature map heights, in the U-Net's pixels (image_size / patch_size).
  model.attention_resolutions = (16,)
  # Attention heads. If head_channels is not 0, channels / head_channels
  # instead.
  model.num_heads = 1
  model.head_channels = 0
  model.dropout = 0.1
  # Classes to condition on; 0 for an unconditional model.
  model.num_classes = 0
  model.norm_groups = 32
  model.norm_epsilon = 1e-6
  # The time embedding scales and shifts the normalized activations; else it is
  # added before the normalization.
  model.scale_shift_norm = False
  # Resample by: conv (Ho) | block (resampling residual blocks, as in BigGAN)
  model.resample = 'conv'
  # ddpm | ddpmpp (Song et al. 2021, as in EDM: residual sums scaled by
  # sqrt(1/2), attention on the way up only after a level's last block, classes
  # enter before the time MLP)
  model.variant = 'ddpm'
  # Initial weights: ho | torch (PyTorch's default; exactly 0 where Ho has
  # 1e-10) | edm
  model.init = 'ho'
  # Space-to-depth block size before the U-Net; 1 for none.
  model.patch_size = 1

  # Details in which PyTorch code differs from Ho's, for converted networks and
  # exact reproductions.
  model.compat = compat = config_dict.ConfigDict()
  # Padding of downsampling convolutions: same (TensorFlow's; for even sizes one
  # pixel right and below) | symmetric (PyTorch's)
  compat.downsample_padding = 'same'
  # Time embedding: sin_cos | cos_sin, of t * 10000^(-i / (half -
  # embedding_shift)), i = 0, ..., half - 1.
  compat.embedding_order = 'sin_cos'
  compat.embedding_shift = 1

  config.diffusion = diffusion = config_dict.ConfigDict()
  diffusion.num_timesteps = 1000
  # linear | cosine | edm (continuous sigma; Karras et al. 2022)
  diffusion.schedule = 'linear'
  diffusion.beta_start = 1e-4
  diffusion.beta_end = 0.02
  # Schedule edm only: the data's standard deviation.
  diffusion.sigma_data = 0.5
  # Parameterization: eps | x0 | v; edm with the schedule edm.
  diffusion.prediction = 'eps'
  # Feed the network t * 1000 / num_timesteps.
  diffusion.rescale_timesteps = False
  # simple | min_snr | vlb | hybrid (simple + vlb / 1000)
  diffusion.loss = 'simple'
  diffusion.min_snr_gamma = 5.0
  # Noise levels in training: uniform | loss_second_moment (importance sampling
  # by each timestep's recent losses) | lognormal (schedule edm only; mean and
  # standard deviation of ln sigma below)
  diffusion.timesteps = 'uniform'
  diffusion.log_sigma_mean = -1.2
  diffusion.log_sigma_std = 1.2
  # Variance of a reverse step: fixedlarge | fixedsmall | learned_range (needs
  # the loss hybrid or vlb)
  diffusion.variance = 'fixedlarge'

  config.optimizer = optimizer = config_dict.ConfigDict()
  optimizer.learning_rate = 2e-4
  # Linear warmup from 0.
  optimizer.warmup_steps = 5000
  # constant | cosine, linear: to 0 at decay_steps | inverse_sqrt:
  # (step / decay_steps)^(-1/2) from decay_steps on
  optimizer.decay = 'constant'
  optimizer.decay_steps = 800_000
  optimizer.beta1 = 0.9
  optimizer.beta2 = 0.999
  optimizer.epsilon = 1e-8
  # Maximum gradient norm; 0 for no clipping.
  optimizer.clip_norm = 1.0
  # global: the norm of the whole batch's gradient, on any number of devices.
  # per_replica: Ho's code. Each of N devices clips its part of the gradient to
  # clip_norm / N, so results depend on N.
  optimizer.clip = 'global'

  config.ema = ema = config_dict.ConfigDict()
  # One EMA of the weights per decay; samplers use the first.
  ema.decays = (0.9999,)
  # Power-function EMAs (EDM2), by relative standard deviation: (0.05, 0.10),
  # say. From two of them in the kept checkpoints, --weights=posthoc:STD
  # reconstructs any other.
  ema.power_stds = ()
  # EMA ramp-up: limits the half-life of `decays` to this share of the training
  # so far (EDM: 0.05); 0 for none.
  ema.rampup_ratio = 0.0

  config.train = train = config_dict.ConfigDict()
  # Images per step, over all devices and hosts.
  train.batch_size = 128
  # Microbatches per step and device, for less memory. Changes results only by
  # rounding.
  train.accumulation_steps = 1
  # Recompute blocks in the backward pass: less memory, more time. Changes
  # results only by rounding.
  train.remat = False
  # Fraction of labels dropped, for classifier-free guidance.
  train.label_dropout = 0.0
  train.num_steps = 800_000
  # Steps per call of the compiled loop, without a return to Python; fewer if
  # a replica's images of these steps take more than 32 MiB.
  train.steps_per_loop = 100
  train.log_every_steps = 100
  train.checkpoint_every_steps = 5000
  # Steps between grids of samples in WORKDIR/samples; 0 for none.
  train.sample_every_steps = 10_000
  # Newest checkpoints to keep.
  train.keep_last = 3
  # Steps between checkpoints that are kept for good; 0 for none.
  train.keep_every_steps = 100_000
  # Time from a signal or a cloud's notice to exit, in which the process saves.
  # Preemptible machines have some 30 s in all.
  train.grace_seconds = 20
  # float16 only: the run stops after more consecutive overflows than this.
  train.max_skipped_steps = 50

  config.sample = sample = config_dict.ConfigDict()
  # Default of the programs and of the trainer's grids: ancestral | ddim |
  # dpmpp_2m | heun. A fast one; papers mostly report ancestral.
  sample.sampler = 'dpmpp_2m'
  sample.steps = 25
  # Noise added by ddim and dpmpp_2m: 0 for none, 1 for as much as ancestral.
  sample.eta = 0.0
  # Karras spacing of dpmpp_2m and heun (Karras et al. 2022), in sigma
  # (sigma / alpha unless the schedule is edm): the last and first step, limited
  # to the schedule's range, and the exponent that crowds steps at low noise.
  sample.sigma_min = 0.002
  sample.sigma_max = 80.0
  sample.rho = 7.0

  config.distribute = distribute = config_dict.ConfigDict()
  # auto | one_device | mirrored | multi_worker | tpu
  distribute.strategy = 'auto'
  # Split the CPU into this many devices. 0: if there is no GPU, as many as pay,
  # mostly one per core (ddpm/runtime/devices.py).
  distribute.virtual_devices = 0
  # float32 | bfloat16, in which replicas exchange gradients. bfloat16 halves
  # the traffic, but rounds: the trajectory depends on the number of replicas.
  distribute.all_reduce_dtype = 'float32'
  # Take the GPUs' memory as it is needed, so that other programs, such as
  # ddpm.sample, can run beside the training. It may become fragmented.
  distribute.memory_growth = False

  return config
