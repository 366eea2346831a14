"""The user's own network as a SavedModel."""

import hashlib
import os

import tensorflow as tf

from ddpm.metrics.extractors.base import Extractor
from ddpm.runtime import files
from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import reason


def extractor(directory, image_shape):
  """Returns the `Extractor` for a SavedModel.

  Its signature `serving_default` takes images [B, H, W, C] with pixels from 0
  to 255, as uint8 or float32. It returns `features` [B, D] and optionally
  `probabilities` [B, K]; a single output may have any name.

  Args:
    directory: the SavedModel.
    image_shape: (H, W, C) of the images.

  Raises:
    UserError: it is not a SavedModel, or its signature does not fit.
  """
  try:
    loaded = tf.saved_model.load(directory)
    signature = loaded.signatures['serving_default']
  except (OSError, ValueError, KeyError, tf.errors.OpError) as e:
    raise BadArgument(
        f'features is savedmodel:{directory}, which is not a SavedModel with'
        f' the signature serving_default: {reason(e)}'
    ) from e
  (name, spec), *others = signature.structured_input_signature[1].items()
  if others or not spec.shape.is_compatible_with([None, *image_shape]):
    raise BadArgument(
        f'features is savedmodel:{directory}, which takes {spec.shape}, but the'
        f' images are {[None, *image_shape]}: export it for this shape'
    )
  outputs = signature.structured_outputs
  key = 'features' if 'features' in outputs else next(iter(outputs))
  if key != 'features' and len(outputs) > 1:
    raise BadArgument(
        f'features is savedmodel:{directory}, which returns'
        f' {", ".join(outputs)}, expected an output named features'
    )

  def function(weights, images):
    del weights  # The SavedModel holds its own.
    result = signature(**{name: tf.cast(images, spec.dtype)})
    features = tf.cast(result[key], tf.float32)
    features = tf.reshape(features, [images.shape[0], -1])
    return features, result.get('probabilities')

  return Extractor(
      name='savedmodel',
      sha256=_sha256(directory),
      resize="the network's own",
      weights=[],
      function=function,
      has_probabilities='probabilities' in outputs,
  )


def _sha256(directory):
  """Hash of the files of the graph and the variables."""
  digest = hashlib.sha256()
  variables = os.path.join(directory, 'variables')
  for path in (
      *files.matching(directory, 'saved_model.pb'),
      *files.matching(variables, 'variables.*'),
  ):
    with tf.io.gfile.GFile(path, 'rb') as f:
      digest.update(f.read())
  return digest.hexdigest()
