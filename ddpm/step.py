"""The training step: a pure function of tensors, and the loop around it.

  gradient   (weights, images, step) -> (loss, gradient)    on each replica
  all-reduce one sum of one vector
  update     (state, gradient) -> state                     on each replica

Gradient and update are concrete functions, made once. Every replica calls the
same ones, so that they are traced once, and XLA compiles them, whatever the
number of replicas; the all-reduce stands outside, where XLA need not know it.
"""

import tensorflow as tf

from ddpm import ema
from ddpm import optimizer
from ddpm import rng

# Streams of an example's key; each names one use of randomness.
_TIMESTEP, _NOISE, _FLIP, _DROPOUT = range(4)


def gradient_function(
    model,
    layout,
    diffusion,
    *,
    seed,
    batch_size,
    replica_batch_size,
    random_flip,
    dropout,
    jit_compile,
):
  """Makes the function that computes the loss and the gradient of a replica.

  All that is random depends on (seed, step, position in the global batch).

  Args:
    model: `unet.UNet`.
    layout: its `state.Layout`.
    diffusion: `diffusion.Diffusion`.
    seed: integer.
    batch_size: images in the global batch, B.
    replica_batch_size: images of one replica, b.
    random_flip: whether to mirror half the images.
    dropout: whether the model drops.
    jit_compile: whether to compile with XLA.

  Returns:
    A concrete function (params [P], loss_scale [], step int64 [], stop [],
    images uint8 [b, H, W, C], labels int32 [b], positions int64 [b]) ->
    float32 [P + 2]: the replica's share of the gradient of the mean loss over
    the global batch, and of that loss; their sum over the replicas is both.
    `stop` comes last, as it is: summed, it tells every worker, in the same
    step, that one of them is to stop.
  """

  def loss_function(params, step, images, labels, positions):
    keys = rng.fold_in(rng.fold_in(rng.key(seed), step), positions)
    x0 = tf.cast(images, tf.float32) / 127.5 - 1.0
    if random_flip:
      flip = rng.uniform(rng.fold_in(keys, _FLIP), ()) < 0.5
      x0 = tf.where(flip[:, None, None, None], tf.reverse(x0, axis=[2]), x0)
    u = rng.uniform(rng.fold_in(keys, _TIMESTEP), ())
    t = tf.cast(u * diffusion.num_timesteps, tf.int32)
    noise = rng.normal(rng.fold_in(keys, _NOISE), model.image_shape)
    output, _ = model.stateless_call(
        layout.split(params),
        [],
        diffusion.q_sample(x0, t, noise),
        t,
        labels=labels if model.num_classes else None,
        dropout_keys=rng.fold_in(keys, _DROPOUT) if dropout else None,
    )
    losses = diffusion.simple_loss(x0, t, noise, output)  # [b]
    return tf.reduce_sum(losses) / batch_size

  def gradient(params, loss_scale, step, stop, images, labels, positions):
    with tf.GradientTape() as tape:
      tape.watch(params)
      loss = loss_function(params, step, images, labels, positions)
      scaled = loss * loss_scale
    gradient = tape.gradient(scaled, params) / loss_scale
    return tf.concat([gradient, tf.stack([loss, stop])], axis=0)

  b = replica_batch_size
  return tf.function(
      gradient, jit_compile=jit_compile, autograph=False
  ).get_concrete_function(
      tf.TensorSpec([layout.size], tf.float32),
      tf.TensorSpec([], tf.float32),
      tf.TensorSpec([], tf.int64),
      tf.TensorSpec([], tf.float32),
      tf.TensorSpec([b, *model.image_shape], tf.uint8),
      tf.TensorSpec([b], tf.int32),
      tf.TensorSpec([b], tf.int64),
  )


def update_function(
    state, *, rate, beta1, beta2, epsilon, clip_norm, use_loss_scale,
    jit_compile,
):  # fmt: skip
  """Makes the function that computes the next state from a gradient.

  Args:
    state: `state.State`, for the shapes; it is not touched.
    rate: function (step) -> learning rate.
    beta1: of Adam.
    beta2: of Adam.
    epsilon: of Adam.
    clip_norm: largest norm of the whole gradient; 0 for no clip.
    use_loss_scale: whether the loss scale moves.
    jit_compile: whether to compile with XLA.

  Returns:
    A concrete function (tensors, packed [P + 2]) -> (tensors, metrics).
    `tensors` is the nest of `State.read`. A gradient that is not finite changes
    nothing but step, skipped_steps and the loss scale.
  """

  def update(tensors, packed):
    gradient, loss, stop = packed[:-2], packed[-2], packed[-1]
    # A sum is finite only if all that it adds is.
    finite = tf.math.is_finite(tf.reduce_sum(tf.abs(packed)))
    gradient, norm = optimizer.clip(gradient, clip_norm)
    step = tensors['step']
    params, m, v = optimizer.adam(
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
        decay: ema.update(average, params, float(decay))
        for decay, average in tensors['ema'].items()
    }
    new = tf.nest.map_structure(
        lambda after, before: tf.where(finite, after, before), new, tensors
    )
    if use_loss_scale:
      new['loss_scale'], new['good_steps'] = optimizer.next_loss_scale(
          tensors['loss_scale'], tensors['good_steps'], finite
      )
    new['skipped_steps'] = tf.where(finite, 0, tensors['skipped_steps'] + 1)
    new['step'] = step + 1
    metrics = {
        'step': new['step'],
        'stop': stop,
        'loss': loss,
        'gradient_norm': norm,
        'learning_rate': rate(step),
        'loss_scale': tensors['loss_scale'],
        'skipped_steps': new['skipped_steps'],
    }
    return new, metrics

  tensors = tf.nest.map_structure(tf.TensorSpec.from_tensor, state.read())
  packed = tf.TensorSpec([state.params.shape[0] + 2], tf.float32)
  return tf.function(
      update, jit_compile=jit_compile, autograph=False
  ).get_concrete_function(tensors, packed)


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
        block['image'][i],
        block['label'][i],
        block['position'][i],
    )
    if local_clip_norm:
      clipped, _ = optimizer.clip(packed[:-2], local_clip_norm)
      packed = tf.concat([clipped, packed[-2:]], axis=0)
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

    start = {
        'step': tf.zeros([], tf.int64),
        'stop': tf.zeros([]),
        'loss': tf.zeros([]),
        'gradient_norm': tf.zeros([]),
        'learning_rate': tf.zeros([]),
        'loss_scale': tf.zeros([]),
        'skipped_steps': tf.zeros([], tf.int32),
    }
    return tf.while_loop(cond, body, (first, start))[1]

  return loop
