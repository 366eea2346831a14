"""A score has to say what eyes say: worse images score worse."""

import hashlib
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from ddpm.data import catalog
from ddpm.data import source as source_lib
from ddpm.metrics import evaluator
from ddpm.metrics import extractors
from ddpm.metrics import sources
from ddpm.metrics.extractors.base import Extractor
from ddpm.runtime.errors import UserError

N = 1000


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = str(tmp_path_factory.mktemp('cache'))
    patch.setattr(evaluator.cache, 'folder', lambda: folder)
    yield


@pytest.fixture(scope='module')
def digits():
  """5,000 digits in random order."""
  source = catalog.load('mnist5k', data_dir='', split='train', image_size=28)
  order = np.random.default_rng(0).permutation(5000)
  return source.images[order], source.labels[order]


@pytest.fixture(scope='module')
def extractor():
  return extractors.load(
      'mnist', inception_weights=None, image_shape=(28, 28, 1)
  )


def source(images, labels=None):
  classes = 0 if labels is None else 10
  if labels is None:
    labels = np.zeros(len(images), np.int32)
  data = source_lib.Images(images, labels, classes)
  return sources.Ordered(data, np.arange(len(images)))


def make_judge(metrics, extractor, images, num_samples=N):
  return evaluator.Evaluator(
      metrics,
      extractor,
      reference=source(images),
      training=source(images),
      num_samples=num_samples,
      strategy=tf.distribute.OneDeviceStrategy('CPU:0'),
  )


@pytest.fixture(scope='module')
def judge(digits, extractor):
  """Knows the last 4,000 digits."""
  return make_judge({'fid', 'kid', 'is'}, extractor, digits[0][N:])


def noisy(images, sigma):
  rng = np.random.default_rng(1)
  pixels = images / 255 + sigma * rng.normal(size=images.shape)
  return (255 * pixels.clip(0, 1)).round().astype(np.uint8)


def shapes(n):
  """Bright blocks, as garments look at 28 x 28 pixels."""
  rng = np.random.default_rng(2)
  images = np.zeros([n, 28, 28, 1], np.uint8)
  for image in images:
    top, left = rng.integers(2, 9, 2)
    bottom, right = rng.integers(17, 26, 2)
    image[top:bottom, left:right] = rng.integers(90, 255)
  return images


def test_ladder(judge, digits):
  images, labels = digits
  unseen = images[:N]
  uniform = np.random.default_rng(3).integers(0, 256, unseen.shape, np.uint8)
  rungs = [
      unseen,
      *(noisy(unseen, sigma) for sigma in (0.05, 0.1, 0.2, 0.4)),
      shapes(N),
      uniform,
  ]
  results = [judge.score(source(rung), 'a rung') for rung in rungs]

  floor = results[0]['details']['floor']
  assert set(floor) == {k for k in results[0] if k != 'details'}
  fd = [result[f'fd_mnist@{N}'] for result in results]
  assert fd == sorted(fd)
  # Digits that nobody has seen are as good as the floor says.
  assert fd[0] < 2 * floor[f'fd_mnist@{N}'] < fd[2]
  kid = [result[f'kid_mnist@{N}'] for result in results]
  # To its kernel shapes are no worse than much noise.
  assert kid[1:5] == sorted(kid[1:5])
  assert abs(kid[0]) < 4 * results[0][f'kid_stderr_mnist@{N}']
  assert results[0][f'is_mnist@{N}'] > 9 > results[-1][f'is_mnist@{N}']

  without = images[labels != 4][: 2 * N][-N:]
  missing = judge.score(source(without), 'no fours')
  assert missing[f'fd_mnist@{N}'] > 2 * fd[0]


def test_what_precision_and_recall_tell_apart(extractor, digits):
  images, labels = digits
  judge = make_judge({'prdc'}, extractor, images[500:], num_samples=500)

  def score(images):
    result = judge.score(source(images), 'digits')
    return {k.removesuffix('_mnist@500'): v for k, v in result.items()}

  real = score(images[:500])
  assert real['density'] == pytest.approx(1, abs=0.15)
  assert real['coverage'] > 0.9
  # Good digits, but of two classes: true, not all there is.
  two = score(images[labels < 2][:500])
  assert two['precision'] > 0.9 * real['precision']
  assert two['recall'] < 0.5 * real['recall']
  assert two['coverage'] < 0.5
  # Nothing real is like these.
  noise = score(noisy(images[:500], 0.4))
  assert noise['recall'] < 0.1 and noise['coverage'] < 0.3


def test_a_set_against_itself(extractor, digits):
  images = digits[0][:N]
  judge = make_judge({'fid', 'prdc', 'nearest'}, extractor, images)
  result = judge.score(source(images), 'itself')
  assert result[f'fd_mnist@{N}'] < 1e-6
  assert result[f'precision_mnist@{N}'] == 1
  assert result[f'coverage_mnist@{N}'] == 1
  # Copies show: they are nearer than real images ever are.
  assert result[f'nearest@{N}'] < 1e-6
  assert result['details']['floor'][f'nearest_p01@{N}'] > 0.02
  # Half of the reference is what the floor can have.
  assert result['details']['floor_num_samples'] == N // 2


def test_a_score_is_a_function_of_the_set(extractor, digits, monkeypatch):
  """In the order of their classes, as conditional samplers write them."""
  monkeypatch.setattr(evaluator, '_GATHERED_ROWS', 300)
  images, labels = digits
  metrics = {'fid', 'kid', 'is', 'prdc', 'nearest'}
  judge = make_judge(metrics, extractor, images[N:])
  # A copy among them, and the other way round.
  images, labels = images[:N].copy(), labels[:N]
  images[7], labels[7] = images[500], labels[500]
  orders = [np.arange(N), np.argsort(labels, kind='stable'), np.arange(N)[::-1]]
  results = [
      judge.score(source(images[order], labels[order]), 'digits')
      for order in orders
  ]
  details = results[0].pop('details')
  for result in results[1:]:
    assert result.pop('details') == details
    assert result == pytest.approx(results[0], rel=1e-6, abs=1e-9)
  # And it is that of a random order.
  assert abs(results[0][f'kid_mnist@{N}']) < 5 * (
      results[0][f'kid_stderr_mnist@{N}']
  )
  assert results[0][f'is_mnist@{N}'] > 9


def test_rows_in_another_order_are_read_part_by_part(monkeypatch):
  monkeypatch.setattr(evaluator, '_GATHERED_ROWS', 7)
  rows = np.arange(60).reshape(20, 3)
  order = np.random.default_rng(0).permutation(20)[:18]
  gathered = evaluator._Gathered(np.split(rows, [5, 6, 13]), order)
  for _ in range(2):
    blocks = list(gathered)
    assert [len(block) for block in blocks] == [7, 7, 4]
    np.testing.assert_array_equal(np.concatenate(blocks), rows[order])


def test_features_of_real_images_are_cached_under_their_name(
    extractor, digits
):
  """What is cached already stays of use."""
  run = evaluator.batched(extractor, tf.distribute.OneDeviceStrategy('CPU:0'))
  images = source(digits[0][:40])
  parts = [images.identity, extractor.name, extractor.sha256, extractor.resize]
  key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
  folder = pathlib.Path(evaluator.cache.folder()) / 'features' / key
  shutil.rmtree(folder, ignore_errors=True)
  for is_shuffled in (False, True):
    assert not folder.exists()
    features = evaluator.Features(
        images, extractor, run, 'digits', is_shuffled=is_shuffled
    )
    list(features.column('features', 0, 40))
  (path,) = folder.glob('rows_*.npz')
  with np.load(path) as arrays:
    assert set(arrays) == {'features', 'probabilities'}


def test_result_says_what_made_it(extractor, digits):
  images, labels = digits
  judge = make_judge({'fid'}, extractor, images[200:400], num_samples=100)
  result = judge.score(source(images[:100], labels[:100]), 'digits')
  details = result.pop('details')
  assert set(result) == {'fd_mnist@100', 'class_agreement_mnist@100'}
  assert result['class_agreement_mnist@100'] > 0.98
  assert details['extractor'] == 'mnist' and details['resize'] == 'none'
  assert details['extractor_sha256'] == extractor.sha256
  assert details['num_samples'] == details['floor_num_samples'] == 100


def test_only_inception_with_50_000_samples_is_called_fid(digits):
  def columns(weights, images):
    return tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 3]), None

  inception = Extractor(
      name='inception', sha256='0', resize='none', weights=[], function=columns
  )
  few = make_judge({'fid'}, inception, digits[0][:200], num_samples=100)
  assert 'fd_inception@100' in few.score(source(digits[0][:100]), 'few')

  data = source_lib.Images(digits[0][:100], np.zeros(100, np.int32), 0)
  again_and_again = sources.Ordered(data, np.arange(50_000) % 100)
  many = make_judge({'fid'}, inception, digits[0][:200], num_samples=50_000)
  assert 'fid' in many.score(again_and_again, 'many')


def test_features_are_kept_and_named_by_what_made_them(
    extractor, digits, monkeypatch
):
  images = source(digits[0][:40])
  run = evaluator.batched(extractor, tf.distribute.OneDeviceStrategy('CPU:0'))
  settings = extractor, run, 'digits'
  first = evaluator.Features(images, *settings, is_shuffled=True)
  expected = first.all_moments()
  monkeypatch.setattr(images, 'read', None)
  again = evaluator.Features(images, *settings, is_shuffled=True)
  np.testing.assert_array_equal(again.all_moments().mean, expected.mean)
  np.testing.assert_array_equal(
      np.concatenate(list(again.column('features', 0, 40))),
      np.concatenate(list(first.column('features', 0, 40))),
  )


def test_refuses(extractor, digits):
  with pytest.raises(UserError, match='reference has 10 images, expected at'):
    make_judge({'is'}, extractor, digits[0][:10])
  broken = Extractor(
      name='broken',
      sha256='0',
      resize='none',
      weights=[],
      function=lambda _, x: (tf.fill([x.shape[0], 3], np.nan), None),
  )
  judge = make_judge({'fid'}, broken, digits[0][:40], num_samples=9)
  with pytest.raises(UserError, match='image 0 has features that are not'):
    judge.score(source(digits[0][:9]), 'digits')
  for value, message in (
      (np.nan, 'image 0 has probabilities that are not finite'),
      (3.0, "extractor's probabilities are negative or do not sum to 1: leave"),
  ):
    broken = Extractor(
        name='broken',
        sha256=str(value),
        resize='none',
        weights=[],
        function=lambda _, x, value=value: (
            tf.zeros([x.shape[0], 3]), tf.fill([x.shape[0], 3], value),
        ),
    )
    judge = make_judge({'is'}, broken, digits[0][:40], num_samples=10)
    with pytest.raises(UserError, match=message):
      judge.score(source(digits[0][:10]), 'digits')
