"""From a name to the network in whose features images are compared."""

from collections.abc import Callable
import dataclasses

import numpy as np

from ddpm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A network that turns images into features.

  Attributes:
    name: as it stands in the name of a score: 'inception'.
    sha256: of the weights, as they lie in the user's file.
    resize: in words, how an image becomes the network's input.
    weights: NumPy arrays, what `function` takes first.
    function: (weights, uint8 [B, H, W, C]) -> (features float32 [B, D],
      probabilities float32 [B, K], or None). It holds static shapes and no
      host ops, so that XLA can compile it.
    has_probabilities: whether `function` returns them.
    labels: whether class k of the probabilities is label k of a data set of
      K classes.
  """

  name: str
  sha256: str
  resize: str
  weights: list[np.ndarray]
  function: Callable
  has_probabilities: bool = True
  labels: bool = False


def check_sha256(file, sha256, expected, *, mend):
  """Raises UserError, with how to mend it, for weights that are others."""
  if sha256 != expected:
    raise UserError(
        f'{file} has SHA-256 {sha256[:16]}..., expected {expected[:16]}...:'
        f' {mend}'
    )


def check_channels(name, image_shape):
  """Raises UserError for images that are neither grey nor RGB."""
  if image_shape[-1] not in (1, 3):
    raise UserError(
        f'--features={name} takes images of 1 or 3 channels, these have'
        f' {image_shape[-1]}: use --features=savedmodel:DIR'
    )
