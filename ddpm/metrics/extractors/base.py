"""The interface of feature extractors, and checks they share."""

from collections.abc import Callable
import dataclasses

import numpy as np

from ddpm.runtime.errors import BadArgument
from ddpm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A network that turns images into features.

  Attributes:
    name: as used in the names of scores, such as 'inception'.
    sha256: hash of the weights file.
    resize: describes how an image becomes the network's input.
    weights: NumPy arrays, the first argument of `function`.
    function: (weights, uint8 [B, H, W, C]) -> (features float32 [B, D],
      probabilities float32 [B, K] or None). Shapes are static and there are
      no host ops, so that XLA can compile it.
    has_probabilities: whether `function` returns probabilities.
    labels: whether class k of the probabilities is label k of the data set.
  """

  name: str
  sha256: str
  resize: str
  weights: list[np.ndarray]
  function: Callable
  has_probabilities: bool = True
  labels: bool = False


def check_sha256(file, sha256, expected, *, fix):
  """Raises UserError if hashes differ; `fix` says how to fix it."""
  if sha256 != expected:
    raise UserError(
        f'{file} has SHA-256 {sha256[:16]}..., expected {expected[:16]}...:'
        f' {fix}'
    )


def check_channels(name, image_shape):
  """Raises UserError unless images are grey or RGB."""
  if image_shape[-1] not in (1, 3):
    raise BadArgument(
        f'features is {name}, which takes images of 1 or 3 channels, but these'
        f' have {image_shape[-1]}: use savedmodel:DIR'
    )
