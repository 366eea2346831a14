"""The training step: pure functions of tensors, and the loop around them.

  gradient    (state, batch) -> packed gradient and losses   on each replica
  all-reduce  one sum of one vector
  update      (state, packed) -> state                       on each replica

Both are concrete functions that all replicas call, so that tracing and XLA's
compilation take no longer for more replicas. The all-reduce stays outside,
where XLA need not handle it.
"""

import dataclasses
import math

import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import losses
from ddpm.diffusion import pixels
from ddpm.nn import flat
from ddpm.nn import unet
from ddpm.optim import adam
from ddpm.optim import ema
from ddpm.run import build
from ddpm.runtime import devices
from ddpm.training import state as state_lib

# Streams of an example's key: each is one use of randomness.
_NOISE_LEVEL, _NOISE, _FLIP, _DROPOUT, _LABEL = range(5)

# The parts of the state that the gradient depends on.
INPUTS = ('step', 'params', 'loss_scale', 'loss_history')


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """One step of training, as functions of tensors alone.

  All randomness depends on (seed, step, position in the global batch).

  Attributes:
    model: `unet.UNet`.
    layout: its `flat.Layout`; P is its size.
    loss: `losses.Loss`.
    noise_levels: one of `noise_levels.NOISE_LEVELS`.
    optimizer: `adam.Adam`.
    clip: `adam.Clip`.
    loss_scale: `adam.LossScale`.
    emas: `ema.EMAs`.
    seed: integer.
    batch_size: images in the global batch, B.
    random_flip: whether to mirror half of the images.
    label_dropout: fraction of the images whose class is withheld.
    accumulation_steps: microbatches that a replica's batch is split into,
      computed one by one to save memory.
    max_skipped_steps: the state is frozen after more steps in a row than this
      without a finite gradient: the loop, which looks one step late, ends with
      the state of the step that was one too many.
    log_every_steps: steps over which the losses by quartile are averaged.
    all_reduce_dtype: that replicas exchange gradients in.
  """

  model: unet.UNet
  layout: flat.Layout
  loss: losses.Loss
  noise_levels: object
  optimizer: adam.Adam
  clip: adam.Clip
  loss_scale: adam.LossScale
  emas: ema.EMAs
  seed: int
  batch_size: int
  random_flip: bool = False
  label_dropout: float = 0.0
  accumulation_steps: int = 1
  max_skipped_steps: int = 0
  log_every_steps: int = 1
  all_reduce_dtype: str = 'float32'

  @classmethod
  def from_config(cls, config, model, layout):
    """The step of a valid config, for its model."""
    loss_scale = build.make_loss_scale(config)
    return cls(
        model=model,
        layout=layout,
        loss=build.make_loss(config),
        noise_levels=build.make_noise_levels(config),
        optimizer=build.make_optimizer(config),
        clip=build.make_clip(config),
        loss_scale=loss_scale,
        emas=build.make_emas(config),
        seed=config.seed,
        batch_size=config.train.batch_size,
        random_flip=config.data.random_flip,
        label_dropout=config.train.label_dropout,
        accumulation_steps=config.train.accumulation_steps,
        # Overflowing steps are expected only with a dynamic loss scale.
        max_skipped_steps=(
            config.train.max_skipped_steps if loss_scale.dynamic else 0
        ),
        log_every_steps=config.train.log_every_steps,
        all_reduce_dtype=config.distribute.all_reduce_dtype,
    )

  def initial_state(self, params):
    """The `State` at step 0, from the initial weights [P]."""
    return state_lib.State(
        params,
        ema_names=self.emas.names,
        loss_history=self.noise_levels.initial_history(),
        num_terms=len(self.loss.terms),
        loss_scale=self.loss_scale.initial,
    )

  def keys(self, step, positions):
    """Keys of the examples at some positions of a step's global batch.

    Args:
      step: int64 scalar.
      positions: int64 [b].

    Returns:
      uint32 [b, 2]. All randomness of an example comes from its key.
    """
    return rng.fold_in(rng.fold_in(rng.key(self.seed), step), positions)

  def gradient(self, state, stop, batch):
    """One replica's share of the gradient of the mean loss.

    Args:
      state: dict of tensors, those of `State.read` named in INPUTS.
      stop: float32 scalar: not 0 if this worker has to stop.
      batch: dict: image uint8 [b, H, W, C], label int32 [b], position
        int64 [b] in the global batch.

    Returns:
      The vector of `pack`; its sum over the replicas holds the gradient of the
      whole batch. The losses of other replicas' images are 0 in it.
    """
    b = batch['position'].shape[0]
    n = self.accumulation_steps
    microbatches = tf.nest.map_structure(
        lambda x: tf.reshape(x, [n, b // n, *x.shape[1:]]), batch
    )

    def add(i, gradient, terms):
      microbatch = tf.nest.map_structure(lambda x: x[i], microbatches)
      more = self._microbatch_gradient(state, microbatch)
      return i + 1, gradient + more[0], terms + more[1]

    if n == 1:
      gradient, terms = self._microbatch_gradient(state, batch)
    else:
      num_terms = len(self.loss.terms)
      # One microbatch at a time, which is what saves memory: without XLA,
      # TensorFlow would start ten together, as they do not depend on each
      # other.
      _, gradient, terms = tf.while_loop(
          lambda i, *_: i < n,
          add,
          (
              tf.constant(0),
              tf.zeros([self.layout.size]),
              tf.zeros([num_terms, self.batch_size]),
          ),
          maximum_iterations=n,
          parallel_iterations=1,
      )
    gradient = self.clip.share(gradient, self.batch_size // b)
    return self.pack(gradient, terms, stop)

  def _microbatch_gradient(self, state, batch):
    """Gradient [P] of its share of the mean loss; terms [terms, B]."""
    with tf.GradientTape() as tape:
      tape.watch(state['params'])
      mean, terms = self._mean_loss(state, batch)
      scaled = mean * state['loss_scale']
    gradient = tape.gradient(scaled, state['params']) / state['loss_scale']
    # Each loss to its example's place in the global batch.
    table = tf.scatter_nd(
        batch['position'][:, None],
        tf.transpose(terms),
        [self.batch_size, terms.shape[0]],
    )
    return gradient, tf.transpose(table)

  def _mean_loss(self, state, batch):
    """Its images' share of the mean loss, and their terms [terms, b]."""
    keys = self.keys(state['step'], batch['position'])
    x0, labels = self._augment(keys, batch)
    weights = self.layout.split(state['params'])
    dropout_keys = rng.fold_in(keys, _DROPOUT) if self.model.dropout else None

    def network(x, time):
      output, _ = self.model.stateless_call(
          weights, [], x, time, labels=labels, dropout_keys=dropout_keys
      )
      return output

    draw = self.noise_levels.draw(
        rng.fold_in(keys, _NOISE_LEVEL), state['loss_history']
    )
    noise = rng.normal(rng.fold_in(keys, _NOISE), self.model.image_shape)
    terms = self.loss(network, x0, draw.t, noise)
    mean = tf.reduce_sum(terms['loss'] * draw.weight) / self.batch_size
    return mean, tf.stack(list(terms.values()))

  def _augment(self, keys, batch):
    """Images in [-1, 1], flipped at random; labels, withheld at random."""
    x0, labels = pixels.from_uint8(batch['image']), batch['label']
    if self.random_flip:
      flip = rng.uniform(rng.fold_in(keys, _FLIP), ()) < 0.5
      x0 = tf.where(flip[:, None, None, None], tf.reverse(x0, axis=[2]), x0)
    if not self.model.num_classes:
      return x0, None
    if self.label_dropout:
      drop = rng.uniform(rng.fold_in(keys, _LABEL), ()) < self.label_dropout
      labels = tf.where(drop, self.model.num_classes, labels)
    return x0, labels

  def pack(self, gradient, terms, stop):
    """One vector for one all-reduce: float32 [P + terms * B + 1].

    `stop` rides along: its sum tells every worker, in the same step, that one
    of them has to stop.
    """
    return tf.concat([gradient, tf.reshape(terms, [-1]), stop[None]], axis=0)

  def unpack(self, packed):
    """Gradient [P], terms [terms, B] and stop [] of a `pack`ed vector."""
    size = self.layout.size
    terms = tf.reshape(packed[size:-1], [-1, self.batch_size])
    return packed[:size], terms, packed[-1]

  def packed_size(self):
    """Length of a `pack`ed vector."""
    return self.layout.size + len(self.loss.terms) * self.batch_size + 1

  def all_reduce(self, packed):
    """Sums the `pack`ed vectors of all replicas; called on each of them.

    Only the gradient is summed in `all_reduce_dtype`; the rest in float32.
    """
    replica = tf.distribute.get_replica_context()

    def total(x):
      return replica.all_reduce(tf.distribute.ReduceOp.SUM, x)

    if self.all_reduce_dtype == 'float32':
      return total(packed)
    size = self.layout.size
    gradient = total(tf.cast(packed[:size], self.all_reduce_dtype))
    return tf.concat(
        [tf.cast(gradient, tf.float32), total(packed[size:])], axis=0
    )

  def reduced_bytes(self):
    """Length of what `all_reduce` sums."""
    rest = 4 * (self.packed_size() - self.layout.size)
    return tf.as_dtype(self.all_reduce_dtype).size * self.layout.size + rest

  def is_frozen(self, state):
    """Whether one step too many had no finite gradient.

    Args:
      state: dict, the state's or a step's metrics.
    """
    return state['skipped_steps'] > self.max_skipped_steps

  def update(self, state, packed):
    """The next state.

    A gradient that is not finite changes only step, skipped_steps and the loss
    scale. After too many of them nothing changes any more.

    Args:
      state: nest of tensors of `State.read`.
      packed: sum over the replicas of what `gradient` returns.

    Returns:
      New state, and the step's metrics, a dict of scalars.
    """
    gradient, terms, stop = self.unpack(packed)
    frozen = self.is_frozen(state)
    # A sum is finite only if all its summands are.
    finite = tf.math.is_finite(tf.reduce_sum(tf.abs(packed)))
    gradient, norm = self.clip.total(gradient)
    step = state['step']
    params, m, v = self.optimizer.update(
        state['params'], state['adam_m'], state['adam_v'], gradient, step
    )
    # The noise levels of the whole batch, drawn again on each replica.
    keys = self.keys(step, tf.range(self.batch_size, dtype=tf.int64))
    draw = self.noise_levels.draw(
        rng.fold_in(keys, _NOISE_LEVEL), state['loss_history']
    )
    history = self.noise_levels.update_history(
        state['loss_history'], draw.t, terms[0]
    )
    terms *= draw.weight
    quartiles = _add_by_quartile(
        state['quartiles'], terms, draw.quartile,
        restart=step % self.log_every_steps == 0,
    )  # fmt: skip
    new = state | {
        'params': params,
        'adam_m': m,
        'adam_v': v,
        'ema': self.emas.update(state['ema'], params, step),
        'loss_history': history,
        'quartiles': quartiles,
    }
    new = tf.nest.map_structure(
        lambda after, before: tf.where(finite & ~frozen, after, before),
        new, state,
    )  # fmt: skip
    skipped = state['skipped_steps'] + 1
    loss_scale, good_steps = self.loss_scale.update(
        state['loss_scale'], state['good_steps'], finite
    )
    counted = {
        'step': step + 1,
        'skipped_steps': tf.where(finite, tf.zeros_like(skipped), skipped),
        'loss_scale': loss_scale,
        'good_steps': good_steps,
    }
    new |= {
        name: tf.where(frozen, state[name], value)
        for name, value in counted.items()
    }
    metrics = {
        'step': new['step'],
        'stop': stop,
        **dict(zip(self.loss.terms, tf.unstack(tf.reduce_mean(terms, axis=1)))),
        'gradient_norm': norm,
        'learning_rate': self.optimizer.learning_rate(step),
        'loss_scale': state['loss_scale'],
        'skipped_steps': new['skipped_steps'],
    }
    return new, metrics | _by_quartile(self.loss.terms, new['quartiles'])


def _add_by_quartile(sums, terms, quartile, *, restart):
  """Adds terms [terms, B], and their number, to sums [terms + 1, 4]."""
  member = tf.one_hot(quartile, 4)  # [B, 4]
  count = tf.reduce_sum(member, axis=0, keepdims=True)
  batch = tf.concat([tf.matmul(terms, member), count], axis=0)
  return tf.where(restart, batch, sums + batch)


def _by_quartile(names, sums):
  """Means of sums [terms + 1, 4], named as in improved-diffusion."""
  means = sums[:-1] / sums[-1]
  return {
      f'{name}_q{q}': means[i, q] for i, name in enumerate(names)
      for q in range(4)
  }  # fmt: skip


def without_weights(config):
  """The `TrainStep` of a config, and its `State.specs`; allocates nothing."""
  with tf.Graph().as_default():
    model = build.make_model(config)
    train_step = TrainStep.from_config(config, model, flat.Layout(model))
    state = train_step.initial_state(flat.flatten(model.trainable_variables))
    return train_step, state.specs()


def compile_gradient(train_step, specs, *, replica_batch_size, jit_compile):
  """`TrainStep.gradient` as a concrete function.

  Args:
    train_step: `TrainStep`.
    specs: of its state, `State.specs`.
    replica_batch_size: images of a replica's batch.
    jit_compile: whether to compile with XLA.
  """
  b = replica_batch_size
  batch = {
      'image': tf.TensorSpec([b, *train_step.model.image_shape], tf.uint8),
      'label': tf.TensorSpec([b], tf.int32),
      'position': tf.TensorSpec([b], tf.int64),
  }
  # Not inlined: without XLA, TensorFlow would optimize one graph with a copy
  # for each replica, which takes twice as long.
  function = tf.function(
      train_step.gradient,
      jit_compile=jit_compile,
      autograph=False,
      experimental_attributes={'_noinline': True},
  )
  return function.get_concrete_function(
      {name: specs[name] for name in INPUTS}, tf.TensorSpec([], tf.float32),
      batch,
  )  # fmt: skip


def compile_update(train_step, specs, *, jit_compile):
  """`TrainStep.update`, in place, as a concrete function.

  It takes the handles of a replica's variables, not their values: XLA then
  writes the new state over the old one, where else both would be in memory at
  once.

  Args:
    train_step: `TrainStep`.
    specs: of its state, `State.specs`.
    jit_compile: whether to compile with XLA.

  Returns:
    Concrete function (`State.handles`, packed) -> metrics.
  """

  def read(handle, spec):
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=spec.dtype)
    value.set_shape(spec.shape)
    return value

  def update(handles, packed):
    state = tf.nest.map_structure(read, handles, specs)
    new, metrics = train_step.update(state, packed)
    for handle, value in zip(tf.nest.flatten(handles), tf.nest.flatten(new)):
      tf.raw_ops.AssignVariableOp(resource=handle, value=value)
    return metrics

  function = tf.function(update, jit_compile=jit_compile, autograph=False)
  handles = tf.nest.map_structure(
      lambda _: tf.TensorSpec([], tf.resource), specs
  )
  packed = tf.TensorSpec([train_step.packed_size()], tf.float32)
  return function.get_concrete_function(handles, packed)


def compile_on_one_device(gradient, update, state, strategy):
  """Has XLA compile both functions for a strategy's first device.

  Each device would else compile the same, all at once, on the same cores. As it
  is, the others find the programs in XLA's cache (`runtime.cache`).

  Args:
    gradient, update: of `compile_gradient` and `compile_update`.
    state: `State`; it is as before in the end.
    strategy: `tf.distribute.Strategy`.
  """
  first, *others = strategy.extended.worker_devices
  if not others or devices.kind(strategy) == 'TPU':
    return
  (_, stop, batch), _ = gradient.structured_input_signature
  handles = tf.nest.map_structure(
      lambda v: strategy.experimental_local_results(v)[0].handle,
      state.variables(),
  )

  @tf.function(autograph=False)
  def run(stop, batch):
    with tf.device(first):
      packed = gradient(state.read(*INPUTS), stop, batch)
      # Of a gradient that is not finite, the update changes only counters.
      return update(handles, math.nan * packed)

  variables = tf.nest.flatten(state.variables())
  counters = [(v, v.read_value()) for v in variables if v.shape.rank == 0]
  run(*tf.nest.map_structure(
      lambda x: tf.zeros(x.shape, x.dtype), (stop, batch)
  ))  # fmt: skip
  for variable, value in counters:
    variable.assign(value)


class Loop:
  """Runs several steps in one call, and keeps the devices busy.

  A call returns once the devices have the last step to compute, and whether the
  loop goes on depends on the step before: the host always has the next step
  ready. So it looks at the metrics of the step before; those of the newest step
  stay on the devices until `newest` fetches them.

  Attributes:
    run: `tf.function` (block, first, last, seen) -> seen. `block` holds the
      batches of several steps, each tensor [K, B, ...]; it runs steps first to
      last - 1 of the block. `seen` are the metrics, on the host, of the step
      before the last that ran; what `restart` or the call before returned.

  Args:
    train_step: `TrainStep`.
    state: its `State`, created in the strategy's scope.
    strategy: `tf.distribute.Strategy`.
    gradient, update: of `compile_gradient` and `compile_update`.
    stop: scalar variable on the host: if it is not 0, the loops of all workers
      end early, after the same step.
  """

  def __init__(self, train_step, state, strategy, *, gradient, update, stop):
    self._train_step = train_step
    self._state = state
    self._strategy = strategy
    self._gradient = gradient
    self._update = update
    self._stop = stop
    # Metrics by type, as vectors: few copies to the host.
    shown = update.structured_outputs
    self._names = [
        [name for name, x in shown.items() if x.dtype == dtype]
        for dtype in (tf.int64, tf.float32)
    ]
    with strategy.scope():
      self._newest = [
          state_lib.variable(tf.zeros([len(names)], dtype))
          for names, dtype in zip(self._names, (tf.int64, tf.float32))
      ]
    self.run = tf.function(self._run, autograph=False)

  def restart(self):
    """Forgets all metrics. Returns the first call's `seen`."""
    for vector in self._newest:
      vector.assign(tf.zeros_like(vector))
    return [tf.zeros(v.shape, v.dtype) for v in self._newest]

  def newest(self):
    """Metrics of the last step that ran: waits for it.

    Returns:
      Dict of scalars, as `TrainStep.update` has it.
    """
    return self._to_metrics([v.read_value() for v in self._newest])

  def may_go_on(self, seen):
    """Boolean scalar: no worker has to stop, and no step failed."""
    metrics = self._to_metrics(seen)
    return (metrics['stop'] == 0) & ~self._train_step.is_frozen(metrics)

  def _run(self, block, first, last, seen):
    # The loop itself is the host's, so it waits for no device.
    with tf.device('CPU:0'):
      _, seen = tf.while_loop(
          lambda i, seen: (i < last) & self.may_go_on(seen),
          lambda i, _: (i + 1, self._run_step(block, i)),
          (first, seen),
      )
    return seen

  def _run_step(self, block, i):
    """Runs one step on all replicas; returns the metrics of that before."""
    # Read here, before each step: a device need not see the host's variable.
    stop = tf.convert_to_tensor(self._stop)
    with tf.device(None):  # The strategy's devices.
      vectors = self._strategy.run(self._replica_step, args=(block, i, stop))
    return [self._strategy.experimental_local_results(v)[0] for v in vectors]

  def _replica_step(self, block, i, stop):
    before = [tf.convert_to_tensor(v) for v in self._newest]
    state = self._state.read(*INPUTS, 'skipped_steps')
    batch = {name: block[name][i] for name in ('image', 'label', 'position')}
    packed = self._gradient({n: state[n] for n in INPUTS}, stop, batch)
    packed = self._train_step.all_reduce(packed)
    metrics = self._update(self._state.handles(), packed)
    # A step after the one that failed has changed nothing, and has no metrics.
    frozen = self._train_step.is_frozen(state)
    for vector, names, old in zip(self._newest, self._names, before):
      newest = tf.stack([metrics[name] for name in names])
      vector.assign(tf.where(frozen, old, newest))
    return before

  def _to_metrics(self, vectors):
    return {
        name: x for names, vector in zip(self._names, vectors)
        for name, x in zip(names, tf.unstack(vector))
    }  # fmt: skip
