"""Images of any size, as images of one size: config.data.resize.

One function for training, evaluation and users' pictures, so that all of them
have the same pixels.
"""

import math

import tensorflow as tf

from ddpm import rng

RULES = ('center_crop', 'random_crop', 'stretch', 'pad')

# Least part of an image's sides that random_crop shows, as in the code of
# Dhariwal and Nichol 2021.
_LEAST = 0.8


def fit(image, height, width, rule, *, method='bilinear'):
  """Brings an image to a size.

  center_crop cuts off what is beyond the target's proportions, on both sides
  alike, and so does random_crop, of which training then shows random parts, see
  `random_part`; stretch changes the proportions; pad adds black borders. The
  image is then resized by a triangle filter (bilinear), widened when it
  shrinks, so that nothing aliases, as in `tf.image.resize` with antialias=True,
  and rounded. An image that has the size already is left as it is.

  Args:
    image: uint8 [H, W, C].
    height, width: of the result, in pixels.
    rule: one of RULES.
    method: of `tf.image.resize`.

  Returns:
    uint8 [height, width, C].
  """
  shape = tf.shape(image)
  h, w = shape[0], shape[1]
  if rule in ('center_crop', 'random_crop'):
    # The largest part of the target's proportions.
    cut_h = tf.minimum(h, tf.maximum(1, w * height // width))
    cut_w = tf.minimum(w, tf.maximum(1, h * width // height))
    image = tf.image.crop_to_bounding_box(
        image, (h - cut_h) // 2, (w - cut_w) // 2, cut_h, cut_w
    )
  if rule == 'pad':
    scale = tf.minimum(height / h, width / w)
    inner_h = _rounded(tf.cast(h, scale.dtype) * scale, height)
    inner_w = _rounded(tf.cast(w, scale.dtype) * scale, width)
  else:
    inner_h, inner_w = height, width

  def resized():
    values = tf.image.resize(
        image, [inner_h, inner_w], method=method, antialias=True
    )
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)

  shape = tf.shape(image)
  same = (shape[0] == inner_h) & (shape[1] == inner_w)
  image = tf.cond(same, lambda: image, resized)
  if rule == 'pad':
    image = tf.image.pad_to_bounding_box(
        image, (height - inner_h) // 2, (width - inner_w) // 2, height, width
    )
  return tf.ensure_shape(image, [height, width, None])


def with_margin(height, width):
  """Size of the images that `random_part` takes its parts of."""
  return math.ceil(height / _LEAST), math.ceil(width / _LEAST)


def random_part(image, key, height, width):
  """A random part of an image, of at least 0.8 of its sides.

  Args:
    image: uint8 [H, W, C] of the size `with_margin`.
    key: uint32 [2].
    height, width: of the result, in pixels.

  Returns:
    uint8 [height, width, C].
  """
  h, w, _ = image.shape
  scale, down, right = tf.unstack(rng.uniform(key, (3,)))

  def at_most(uniform, number):
    """A number from 0 to `number`, all as likely."""
    return tf.cast(uniform * tf.cast(number + 1, tf.float32), tf.int32)

  part_h = height + at_most(scale, h - height)
  part_w = tf.clip_by_value(
      tf.cast(tf.round(part_h * width / height), tf.int32), width, w
  )
  image = tf.image.crop_to_bounding_box(
      image, at_most(down, h - part_h), at_most(right, w - part_w),
      part_h, part_w,
  )  # fmt: skip
  return fit(image, height, width, 'stretch')


def _rounded(size, most):
  return tf.clip_by_value(tf.cast(tf.round(size), tf.int32), 1, most)
