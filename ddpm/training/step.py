"""The training step: a pure function of tensors, and the loop around it.

  gradient   (weights, images, step) -> (losses, gradient)  on each replica
  all-reduce one sum of one vector
  update     (state, gradient) -> state                     on each replica

Gradient and update are concrete functions, made once. Every replica calls the
same ones, so that they are traced once, and XLA compiles them, whatever the
number of replicas; the all-reduce stands outside, where XLA need not know it.
"""

import tensorflow as tf

from ddpm import rng
from ddpm.diffusion import pixels
from ddpm.diffusion import process as process_lib
from ddpm.optim import adam
from ddpm.optim import ema

# Streams of an example's key; each names one use of randomness.
_TIMESTEP, _NOISE, _FLIP, _DROPOUT, _LABEL = range(5)


def example_keys(seed, step, positions):
  """The keys of the examples at some positions of a step's global batch.

  Args:
    seed: integer.
    step: int64 scalar.
    positions: int64 [b].

  Returns:
    uint32 [b, 2]. All that is random of an example comes from its key.
  """
  return rng.fold_in(rng.fold_in(rng.key(seed), step), positions)


def gradient_function(
    model,
    layout,
    diffusion,
    timesteps,
    *,
    seed,
    batch_size,
    replica_batch_size,
    random_flip,
    dropout,
    jit_compile,
    loss='simple',
    min_snr_gamma=5.0,
    label_dropout=0.0,
    accumulation_steps=1,
):
  """Makes the function that computes the losses and the gradient of a replica.

  All that is random depends on (seed, step, position in the global batch).

  Args:
    model: `unet.UNet`.
    layout: its `flat.Layout`.
    diffusion: of `diffusion`, the process.
    timesteps: of `timesteps`, the choice of noise levels.
    seed: integer.
    batch_size: images in the global batch, B.
    replica_batch_size: images of one replica, b.
    random_flip: whether to mirror half the images.
    dropout: whether the model drops.
    jit_compile: whether to compile with XLA.
    loss: one of `process.LOSSES`.
    min_snr_gamma: of the loss min_snr.
    label_dropout: share of the images whose class is withheld.
    accumulation_steps: parts that a replica's batch is worked off in, one
      after the other, to need less memory.

  Returns:
    A concrete function (params [P], loss_scale [], step int64 [], stop [],
    memory, images uint8 [b, H, W, C], labels int32 [b], positions int64 [b])
    -> float32 [P + terms * B + 1], which `unpack` takes apart: the replica's
    share of the gradient of the mean loss over the global batch, and the
    losses of its own images, 0 for the others'. The sum over the replicas is
    the whole of both. `stop` comes last, as it is: summed, it tells every
    worker, in the same step, that one of them is to stop.
  """

  def prepare(keys, images, labels):
    x0 = pixels.from_uint8(images)
    if random_flip:
      flip = rng.uniform(rng.fold_in(keys, _FLIP), ()) < 0.5
      x0 = tf.where(flip[:, None, None, None], tf.reverse(x0, axis=[2]), x0)
    if label_dropout:
      drop = rng.uniform(rng.fold_in(keys, _LABEL), ()) < label_dropout
      labels = tf.where(drop, model.num_classes, labels)
    return x0, labels

  def loss_function(params, step, memory, images, labels, positions):
    """A part's share of the mean loss, and its terms, [terms, b / parts]."""
    keys = example_keys(seed, step, positions)
    x0, labels = prepare(keys, images, labels)
    weights = layout.split(params)
    dropout_keys = rng.fold_in(keys, _DROPOUT) if dropout else None

    def network(x, time):
      output, _ = model.stateless_call(
          weights,
          [],
          x,
          time,
          labels=labels if model.num_classes else None,
          dropout_keys=dropout_keys,
      )
      return output

    draw = timesteps.draw(rng.fold_in(keys, _TIMESTEP), memory)
    noise = rng.normal(rng.fold_in(keys, _NOISE), model.image_shape)
    terms = diffusion.losses(
        network, x0, draw.t, noise, loss=loss, min_snr_gamma=min_snr_gamma
    )
    mean = tf.reduce_sum(terms['loss'] * draw.weight) / batch_size
    return mean, tf.stack(list(terms.values()))

  def part_gradient(params, loss_scale, step, memory, *examples):
    with tf.GradientTape() as tape:
      tape.watch(params)
      mean, terms = loss_function(params, step, memory, *examples)
      scaled = mean * loss_scale
    gradient = tape.gradient(scaled, params) / loss_scale
    _, _, positions = examples
    # Each loss to its example's place in the global batch.
    table = tf.scatter_nd(
        positions[:, None], tf.transpose(terms), [batch_size, terms.shape[0]]
    )
    return tf.concat([gradient, tf.reshape(tf.transpose(table), [-1])], axis=0)

  def gradient(params, loss_scale, step, stop, memory, *examples):
    if accumulation_steps == 1:
      packed = part_gradient(params, loss_scale, step, memory, *examples)
      return tf.concat([packed, stop[None]], axis=0)
    parts = [
        tf.reshape(x, [accumulation_steps, -1, *x.shape[1:]]) for x in examples
    ]

    def body(i, packed):
      part = part_gradient(
          params, loss_scale, step, memory, *(x[i] for x in parts)
      )
      return i + 1, packed + part

    num_terms = len(process_lib.loss_terms(loss))
    zero = tf.zeros([layout.size + num_terms * batch_size])
    # One part at a time, which is what saves memory: without XLA TensorFlow
    # would start ten together, as they do not depend on each other.
    _, packed = tf.while_loop(
        lambda i, _: i < accumulation_steps,
        body,
        (tf.constant(0), zero),
        maximum_iterations=accumulation_steps,
        parallel_iterations=1,
    )
    return tf.concat([packed, stop[None]], axis=0)

  b = replica_batch_size
  return tf.function(
      gradient, jit_compile=jit_compile, autograph=False
  ).get_concrete_function(
      tf.TensorSpec([layout.size], tf.float32),
      tf.TensorSpec([], tf.float32),
      tf.TensorSpec([], tf.int64),
      tf.TensorSpec([], tf.float32),
      tf.nest.map_structure(tf.TensorSpec.from_tensor, timesteps.initial()),
      tf.TensorSpec([b, *model.image_shape], tf.uint8),
      tf.TensorSpec([b], tf.int32),
      tf.TensorSpec([b], tf.int64),
  )


def unpack(packed, size, batch_size):
  """Gradient [P], losses [terms, B] and stop [], out of one vector."""
  gradient, losses = packed[:size], packed[size:-1]
  return gradient, tf.reshape(losses, [-1, batch_size]), packed[-1]


def update_function(
    state,
    timesteps,
    *,
    seed,
    batch_size,
    rate,
    beta1,
    beta2,
    epsilon,
    clip_norm,
    use_loss_scale,
    jit_compile,
    loss='simple',
    rampup_ratio=0.0,
    log_every_steps=1,
):
  """Makes the function that computes the next state from a gradient.

  Args:
    state: `state.State`, for the shapes; it is not touched.
    timesteps: of `timesteps`, the choice of noise levels.
    seed: integer.
    batch_size: images in the global batch, B.
    rate: function (step) -> learning rate.
    beta1: of Adam.
    beta2: of Adam.
    epsilon: of Adam.
    clip_norm: largest norm of the whole gradient; 0 for no clip.
    use_loss_scale: whether the loss scale moves.
    jit_compile: whether to compile with XLA.
    loss: one of `process.LOSSES`.
    rampup_ratio: of the averages, `ema.share_at`.
    log_every_steps: steps over which the losses by quartile are averaged.

  Returns:
    A concrete function (tensors, packed) -> (tensors, metrics). `tensors` is
    the nest of `State.read`, `packed` the sum over the replicas of what
    `gradient_function` makes. A gradient that is not finite changes nothing
    but step, skipped_steps and the loss scale.
  """
  terms = process_lib.loss_terms(loss)
  size = state.params.shape[0]

  def update(tensors, packed):
    gradient, losses, stop = unpack(packed, size, batch_size)
    # A sum is finite only if all that it adds is.
    finite = tf.math.is_finite(tf.reduce_sum(tf.abs(packed)))
    gradient, norm = adam.clip(gradient, clip_norm)
    step = tensors['step']
    params, m, v = adam.adam(
        tensors['params'],
        tensors['adam_m'],
        tensors['adam_v'],
        gradient,
        step,
        rate=rate(step),
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )
    new = dict(tensors, params=params, adam_m=m, adam_v=v)
    new['ema'] = {
        name: ema.update(
            average,
            params,
            ema.share_at(name, step, rampup_ratio=rampup_ratio),
        )
        for name, average in tensors['ema'].items()
    }
    # The whole batch's noise levels, drawn again on each replica.
    keys = example_keys(seed, step, tf.range(batch_size, dtype=tf.int64))
    draw = timesteps.draw(rng.fold_in(keys, _TIMESTEP), tensors['memory'])
    new['memory'] = timesteps.remember(tensors['memory'], draw.t, losses[0])
    losses *= draw.weight
    new['quartiles'] = _add_by_quartile(
        tensors['quartiles'], losses, draw.quartile,
        anew=step % log_every_steps == 0,
    )  # fmt: skip
    new = tf.nest.map_structure(
        lambda after, before: tf.where(finite, after, before), new, tensors
    )
    if use_loss_scale:
      new['loss_scale'], new['good_steps'] = adam.next_loss_scale(
          tensors['loss_scale'], tensors['good_steps'], finite
      )
    new['skipped_steps'] = tf.where(finite, 0, tensors['skipped_steps'] + 1)
    new['step'] = step + 1
    metrics = {
        'step': new['step'],
        'stop': stop,
        **dict(zip(terms, tf.unstack(tf.reduce_mean(losses, axis=1)))),
        'gradient_norm': norm,
        'learning_rate': rate(step),
        'loss_scale': tensors['loss_scale'],
        'skipped_steps': new['skipped_steps'],
    }
    return new, metrics | _by_quartile(terms, new['quartiles'])

  tensors = tf.nest.map_structure(tf.TensorSpec.from_tensor, state.read())
  packed = tf.TensorSpec([size + len(terms) * batch_size + 1], tf.float32)
  return tf.function(
      update, jit_compile=jit_compile, autograph=False
  ).get_concrete_function(tensors, packed)


def _add_by_quartile(sums, losses, quartile, *, anew):
  """Adds losses [terms, B], and their number, to sums [terms + 1, 4]."""
  member = tf.one_hot(quartile, 4)  # [B, 4]
  count = tf.reduce_sum(member, axis=0, keepdims=True)
  batch = tf.concat([tf.matmul(losses, member), count], axis=0)
  return tf.where(anew, batch, sums + batch)


def _by_quartile(terms, sums):
  """Means of sums [terms + 1, 4], named as improved-diffusion does."""
  means = sums[:-1] / sums[-1]
  return {
      f'{name}_q{q}': means[i, q] for i, name in enumerate(terms)
      for q in range(4)
  }  # fmt: skip


def loop_function(
    strategy,
    state,
    gradient,
    update,
    *,
    local_clip_norm,
    max_skipped_steps,
    stop,
):
  """Makes the function that runs several steps in one call.

  Args:
    strategy: `tf.distribute.Strategy`.
    state: `state.State`, created in the strategy's scope.
    gradient: what `gradient_function` made.
    update: what `update_function` made.
    local_clip_norm: clip of each replica's share, before the sum; 0 for none.
    max_skipped_steps: steps in a row without a finite gradient after which
      the loop ends early.
    stop: scalar variable on the host; where it is not 0 the loops of all
      workers end early, after the same step.

  Returns:
    A function (block, first, last) -> metrics of the last step that ran.
    `block` holds the batches of several steps, each tensor [K, B, ...]; steps
    first to last - 1 of it are run.
  """

  def replica_step(block, i, stop):
    tensors = state.read()
    packed = gradient(
        tensors['params'],
        tensors['loss_scale'],
        tensors['step'],
        stop,
        tensors['memory'],
        block['image'][i],
        block['label'][i],
        block['position'][i],
    )
    if local_clip_norm:
      size = state.params.shape[0]
      clipped, _ = adam.clip(packed[:size], local_clip_norm)
      packed = tf.concat([clipped, packed[size:]], axis=0)
    replica = tf.distribute.get_replica_context()
    packed = replica.all_reduce(tf.distribute.ReduceOp.SUM, packed)
    new, metrics = update(tensors, packed)
    tf.nest.map_structure(lambda v, x: v.assign(x), state.variables(), new)
    return metrics

  def run_one(i, block):
    # Read here, before each step: a device need not see the host's variable.
    now = tf.convert_to_tensor(stop)
    metrics = strategy.run(replica_step, args=(block, i, now))
    return tf.nest.map_structure(
        lambda x: strategy.experimental_local_results(x)[0], metrics
    )

  def loop(block, first, last):
    def body(i, _):
      return i + 1, run_one(i, block)

    def cond(i, metrics):
      return (
          (i < last)
          & (metrics['stop'] == 0)
          & (metrics['skipped_steps'] <= max_skipped_steps)
      )

    # What no step has written yet.
    start = tf.nest.map_structure(
        lambda x: tf.zeros(x.shape, x.dtype), update.structured_outputs[1]
    )
    return tf.while_loop(cond, body, (first, start))[1]

  return loop
