"""The Inception network against pytorch-fid's own code, on random weights."""

import re

import numpy as np
from oracles import weights
import pytest
from support import with_oracle

from ddpm.metrics.extractors import inception
from ddpm.runtime.errors import UserError


@pytest.fixture(scope='module')
def extractor():
  """Its weights are those that oracles/inception.py gave pytorch-fid."""
  state = weights.random_state(_shapes(inception.network()), weights.SEED)
  return inception.from_state_dict(state, 'none')


def _shapes(model):
  """Shapes of pytorch-fid's random weights, from those of the Keras model."""
  shapes = {'fc.weight': (1008, 2048), 'fc.bias': (1008,)}
  for layer in model.layers:
    if layer.name.endswith('.conv'):
      h, w, features_in, features = layer.kernel.shape
      shapes[f'{layer.name}.weight'] = (features, features_in, h, w)
      norm = layer.name.removesuffix('.conv') + '.bn'
      for name in ('weight', 'bias', 'running_mean', 'running_var'):
        shapes[f'{norm}.{name}'] = (features,)
  return shapes


@pytest.mark.parametrize(('height', 'width'), ((32, 32), (400, 310)))
def test_is_the_network_of_pytorch_fid(extractor, height, width):
  """Compiled by XLA, on images that grow and on images that shrink."""
  features, probabilities, expected, softmax = with_oracle(
      extractor, 'inception', height, width
  )
  np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)
  np.testing.assert_allclose(probabilities, softmax, rtol=1e-3)


def test_weights(extractor):
  """As many values as pytorch-fid's network has, but for its counters."""
  # The bias of the last layer is not among them.
  assert sum(w.size for w in extractor.weights) == 23_885_392 - 1008
  assert all(w.dtype == np.float32 for w in extractor.weights)
  assert extractor.name == 'inception'
  assert not extractor.labels


def test_refuses(tmp_path):
  path = tmp_path / 'weights.pth'
  link = re.escape('https://github.com/mseitzer/pytorch-fid/releases/')
  message = rf'No such file.*{link}.*inception_weights$'
  with pytest.raises(UserError, match=message):
    inception.extractor(path, (32, 32, 3))
  path.write_bytes(b'abc')
  with pytest.raises(
      UserError,
      match=rf'SHA-256 ba7816bf8f01cfea\.\.\., expected 6726825d0af5f729\.\.\.'
      rf'.*{link}.*inception_weights$',
  ):
    inception.extractor(path, (32, 32, 3))
  with pytest.raises(UserError, match='1 or 3 channels, but these have 2'):
    inception.extractor(path, (32, 32, 2))


def test_the_default_is_in_the_home_of_the_user(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  with pytest.raises(UserError, match=f'{tmp_path}/.cache/torch/hub'):
    inception.extractor(None, (32, 32, 3))
