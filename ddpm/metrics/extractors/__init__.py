"""Loads feature extractors by name."""

from ddpm.runtime.errors import BadArgument

EXTRACTORS = ('mnist', 'inception', 'efficientnet', 'savedmodel:DIR')


def load(name, *, inception_weights, image_shape):
  """Loads an extractor.

  Args:
    name: one of EXTRACTORS.
    inception_weights: weights file for 'inception'; None for its default.
    image_shape: (H, W, C) of the images.

  Returns:
    `Extractor`.

  Raises:
    UserError: the name is unknown, the weights are missing or wrong, or the
      network does not support the image shape.
  """
  # Imported lazily, because imports are slow.
  if name == 'mnist':
    from ddpm.metrics.extractors import mnist

    return mnist.extractor(image_shape)
  if name == 'inception':
    from ddpm.metrics.extractors import inception

    return inception.extractor(inception_weights, image_shape)
  if name == 'efficientnet':
    from ddpm.metrics.extractors import efficientnet

    return efficientnet.extractor(image_shape)
  if name.startswith('savedmodel:'):
    from ddpm.metrics.extractors import savedmodel

    return savedmodel.extractor(name.removeprefix('savedmodel:'), image_shape)
  raise BadArgument(
      f'features is {name!r}, expected one of: {", ".join(EXTRACTORS)}'
  )
