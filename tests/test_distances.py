"""Distances against other people's code, and against plain formulas."""

import numpy as np
from oracles import distances as oracle
import pytest
import scipy.linalg

from ddpm.metrics import distances

RESULTS = np.load(oracle.FILE)
REAL, FAKE = oracle.random_features('many')


def _cut(rows, *sizes):
  """Blocks of these sizes, and one of what is left."""
  return np.split(rows, np.cumsum(sizes))


def _moments(features):
  moments = distances.Moments(features.shape[1])
  moments.add(features)
  return moments


def _draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


def _assert_same(a, b, rtol=1e-10, scale=1.0):
  assert a.count == b.count
  np.testing.assert_allclose(a.mean, b.mean, rtol, rtol * scale)
  np.testing.assert_allclose(
      a.covariance, b.covariance, rtol, rtol * scale**2
  )


def test_moments_are_numpys_however_they_come():
  x = _draw(1, 300, 7) + 1e6
  moments = distances.Moments(7)
  for block in _cut(x, 1, 2, 100):
    moments.add(block)
  np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-14)
  np.testing.assert_allclose(
      moments.covariance, np.cov(x, rowvar=False), rtol=1e-8, atol=1e-9
  )
  merged = distances.Moments(7)
  merged.merge(distances.Moments(7))
  for block in _cut(x, 40, 200):
    merged.merge(_moments(block))
  merged.merge(distances.Moments(7))
  _assert_same(merged, moments, 1e-8)


def test_moments_without_a_part():
  x = _draw(2, 300, 7) * 3 + 5
  part, rest = _moments(x[:290]), _moments(x[290:])
  whole = _moments(x)
  _assert_same(whole.without(part), rest)
  _assert_same(whole.without(rest), part)
  _assert_same(whole, _moments(x))
  with pytest.raises(ValueError, match='cannot remove 300 rows'):
    whole.without(whole)


def test_moments_are_kept(tmp_path):
  moments = _moments(_draw(3, 20, 4))
  arrays = moments.to_arrays()
  np.savez(tmp_path / 'm.npz', **arrays)
  kept = distances.Moments.from_arrays(dict(np.load(tmp_path / 'm.npz')))
  np.testing.assert_array_equal(kept.covariance, moments.covariance)
  for m in (kept, moments):
    m.add(_draw(4, 9, 4))
  np.testing.assert_array_equal(kept.covariance, moments.covariance)
  np.testing.assert_array_equal(kept.mean, moments.mean)
  for name, array in np.load(tmp_path / 'm.npz').items():
    np.testing.assert_array_equal(arrays[name], array)
  with pytest.raises(ValueError, match='scatter has shape'):
    distances.Moments.from_arrays(arrays | {'scatter': np.zeros([3, 4])})


@pytest.mark.parametrize('case', oracle.CASES)
def test_frechet_is_that_of_others(case):
  real, fake = oracle.random_features(case)
  value = distances.frechet(_moments(real), _moments(fake))
  assert value == pytest.approx(float(RESULTS[f'{case}_fd']), rel=1e-6)


def test_frechet_by_a_matrix_root():
  x, y = _draw(5, 100, 6) @ _draw(6, 6, 6), _draw(7, 80, 6) + 1
  a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(
      a + b - 2 * scipy.linalg.sqrtm(a @ b).real
  )
  value = distances.frechet(_moments(x), _moments(y))
  assert value == pytest.approx(expected, rel=1e-10)


def test_frechet_of_fewer_rows_than_dimensions():
  """From the features themselves: no covariance, so none that is singular."""
  x, y = (z.astype(np.float64) for z in oracle.random_features('few'))
  a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
  expected = (
      np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
      + np.sum(a**2) + np.sum(b**2)
      - 2 * np.linalg.norm(a @ b.T, 'nuc')
  )  # fmt: skip
  value = distances.frechet(_moments(x), _moments(y))
  assert value == pytest.approx(expected, rel=1e-7)


def test_frechet_of_planes_without_a_common_direction():
  """Rank 1 each, at right angles: nothing overlaps, all variance is left."""
  x = np.zeros([50, 40])
  y = np.zeros([30, 40])
  x[:, 3], y[:, 8] = _draw(8, 50), _draw(9, 30)
  expected = (
      x[:, 3].var(ddof=1) + y[:, 8].var(ddof=1)
      + x[:, 3].mean() ** 2 + y[:, 8].mean() ** 2
  )  # fmt: skip
  value = distances.frechet(_moments(x), _moments(y))
  assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('scale', [1.0, 1e3])
@pytest.mark.parametrize('rows,dimensions', [(60, 200), (200, 60)])
def test_frechet_of_a_set_against_itself(rows, dimensions, scale):
  x = scale * (_draw(10, rows, dimensions) + 1)
  shuffled = np.random.default_rng(11).permutation(x)
  a, b = _moments(x), distances.Moments(dimensions)
  for block in _cut(shuffled, 13, 30):
    b.add(block)
  value = distances.frechet(a, b)
  assert 0 <= value < 1e-6 * min(1.0, np.trace(a.covariance))
  assert distances.frechet(a, _moments(x + scale)) == pytest.approx(
      dimensions * scale**2
  )


def _mmd(x, y):
  """Unbiased, pair by pair."""
  x, y = x.astype(np.float64), y.astype(np.float64)

  def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3

  within = [
      np.mean([
          kernel(z[i], z[j])
          for i in range(len(z)) for j in range(len(z)) if i != j
      ])
      for z in (x, y)
  ]  # fmt: skip
  return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kid_pair_by_pair():
  x, y = _draw(12, 50, 5), 0.5 * _draw(13, 45, 5) + 1
  values = [_mmd(x[i : i + 20], y[i : i + 20]) for i in (0, 20)]
  value, error = distances.kid(_cut(x, 7), _cut(y, 30), block_size=20)
  assert value == pytest.approx(np.mean(values), rel=1e-12)
  assert error == pytest.approx(abs(values[0] - values[1]) / 2, rel=1e-9)


def test_kid_of_fewer_rows_than_a_block():
  x, y = _draw(14, 50, 5), _draw(15, 30, 5) + 1
  value, error = distances.kid([x], [y])
  assert value == pytest.approx(_mmd(x, y), rel=1e-12)
  assert np.isnan(error)
  value, error = distances.kid([x], [y], block_size=40)
  assert value == pytest.approx(_mmd(x[:40], y), rel=1e-12)
  assert np.isnan(error)


def test_kid_is_scikit_learns_kernel():
  pairwise = pytest.importorskip('sklearn.metrics.pairwise')

  def others(z):
    kernel = pairwise.polynomial_kernel(z.astype(np.float64), degree=3)
    return kernel[~np.eye(len(z), dtype=bool)].mean()

  cross = pairwise.polynomial_kernel(
      REAL[:200].astype(np.float64), FAKE[:200].astype(np.float64), degree=3
  )
  value, _ = distances.kid([REAL[:200]], [FAKE[:200]])
  expected = others(REAL[:200]) + others(FAKE[:200]) - 2 * cross.mean()
  assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('case', oracle.CASES)
def test_kid_is_that_of_others(case):
  real, fake = oracle.random_features(case)
  value, error = distances.kid(
      _cut(real, 70), _cut(fake, 50, 5), oracle.CASES[case][-1]
  )
  values = RESULTS[f'{case}_kid']
  assert value == pytest.approx(values.mean(), rel=1e-9)
  if len(values) > 1:
    expected = values.std(ddof=1) / np.sqrt(len(values))
    assert error == pytest.approx(expected, rel=1e-9)
  if case == 'many':
    value, error = distances.kid([real], [fake])
    expected = float(RESULTS['many_kid_of_one_block'])
    assert value == pytest.approx(expected, rel=1e-9)


def _probabilities():
  p = np.exp(oracle.random_logits())
  return p / p.sum(axis=1, keepdims=True)


def test_inception_score_is_that_of_others():
  p = _probabilities()
  for blocks in ([p], _cut(p, 1, 400, 2), _cut(p, *[13] * 90)):
    mean, std = distances.inception_score(blocks, len(p), oracle.SPLITS)
    assert mean == pytest.approx(float(RESULTS['is_mean']), rel=1e-9)
    assert std == pytest.approx(float(RESULTS['is_std']), rel=1e-7)


def test_inception_score_of_certain_and_of_equal_classes():
  certain = np.tile(np.eye(4), [10, 1])
  mean, std = distances.inception_score([certain], 40, splits=5)
  assert mean == pytest.approx(4) and std == pytest.approx(0, abs=1e-12)
  equal = np.full([40, 4], 0.25)
  assert distances.inception_score([equal], 40)[0] == pytest.approx(1)
  # One part of two classes, one of four.
  parts = np.concatenate([np.eye(4)[[0, 1] * 4], np.eye(4)[[0, 1, 2, 3] * 2]])
  mean, std = distances.inception_score([parts], 16, splits=2)
  assert mean == pytest.approx(3) and std == pytest.approx(1)


def _prdc(real, fake, k_precision, k_density):
  """The definitions, with every distance from a difference."""

  def squared(a, b):
    return np.square(a[:, None] - b).sum(axis=-1)

  def radii(a, k):
    d = squared(a, a)
    np.fill_diagonal(d, np.inf)
    return np.sort(d, axis=1)[:, k - 1]

  d = squared(real, fake)
  inside = d < radii(real, k_density)[:, None]
  return {
      'precision': (d <= radii(real, k_precision)[:, None]).any(axis=0).mean(),
      'recall': (d <= radii(fake, k_precision)).any(axis=1).mean(),
      'density': inside.sum() / k_density / len(fake),
      'coverage': inside.any(axis=1).mean(),
  }


def _sets_with_ties():
  """Copies, near copies, and a lattice, on which most distances are ties."""
  generator = np.random.default_rng(16)
  smooth = generator.standard_normal([60, 12]) + 20
  real = np.concatenate([smooth, smooth[:8], smooth[:8]])
  fake = np.concatenate([
      smooth[5:40], smooth[:1], generator.standard_normal([30, 12]) + 20,
      smooth[40:] * (1 + 1e-13),
  ])  # fmt: skip
  yield real, generator.permutation(fake)
  # Tenths have no exact squares.
  lattice = generator.integers(0, 3, [90, 4]) / 10 + 0.1
  yield lattice, generator.permutation(lattice)
  yield lattice[:50], lattice[50:]


@pytest.mark.parametrize('rows', [2048, 50, 7])
def test_prdc_by_its_definition_whatever_is_tied(rows, monkeypatch):
  monkeypatch.setattr(distances, '_ROWS', rows)
  for real, fake in _sets_with_ties():
    for ks in ((3, 5), (2, 1)):
      expected = _prdc(real, fake, *ks)
      values = distances.prdc(_cut(real, 3, 20), _cut(fake, 30), *ks)
      assert values == pytest.approx(expected, rel=1e-12), (rows, ks)


def test_prdc_of_a_set_against_itself(monkeypatch):
  monkeypatch.setattr(distances, '_ROWS', 100)
  x = REAL[:333]
  shuffled = np.random.default_rng(17).permutation(x)
  expected = {'precision': 1, 'recall': 1, 'density': 1, 'coverage': 1}
  assert distances.prdc([x], [shuffled]) == expected
  far = distances.prdc([x], [x + 1e3])
  assert far == dict.fromkeys(expected, 0)


def test_prdc_of_one_image_drawn_again_and_again():
  """Radius 0: within its own closed ball, and in no open one."""
  fake = np.repeat(FAKE[:1], 20, axis=0)
  values = distances.prdc([np.repeat(FAKE[:1], 9, axis=0)], [fake])
  assert values == {'precision': 1, 'recall': 1, 'density': 0, 'coverage': 0}
  values = distances.prdc([REAL[:99]], [fake])
  assert values['recall'] == 0 and values['coverage'] < 0.5


@pytest.mark.parametrize('case', oracle.CASES)
def test_prdc_is_that_of_others(case):
  real, fake = oracle.random_features(case)
  values = distances.prdc(_cut(real, 30), _cut(fake, 1, 7))
  k = {'precision': 3, 'recall': 3, 'density': 5, 'coverage': 5}
  expected = {n: float(RESULTS[f'{case}_{n}_{k[n]}']) for n in k}
  assert values == pytest.approx(expected, rel=1e-12)
  assert 0 < values['recall'] < 1


def test_nearest_by_differences(monkeypatch):
  x, y = REAL[:40].astype(np.float64), FAKE[:90].astype(np.float64)
  expected = [np.sqrt(min(np.sum((a - b) ** 2) for b in y)) for a in x]
  values = distances.nearest(_cut(REAL[:40], 9), _cut(FAKE[:90], 50))
  assert values.dtype == np.float64
  np.testing.assert_allclose(values, expected, rtol=1e-13)
  monkeypatch.setattr(distances, '_ROWS', 7)
  np.testing.assert_array_equal(values, distances.nearest([x], [y]))


def test_nearest_of_copies_and_of_near_copies():
  """Where |x|^2 + |y|^2 - 2 x'y has lost all its digits."""
  y = np.random.default_rng(18).random([50, 700])
  x = y[[3, 49, 7]]
  x[2, 5] += 1e-9
  values = distances.nearest([x], _cut(y, 20))
  assert values[0] == values[1] == 0
  assert values[2] == pytest.approx(1e-9, rel=1e-6)


def test_refuses():
  ok = [_draw(19, 9, 3)]
  nan = [np.array([[0, np.nan, 0]])]
  wide = [_draw(19, 9, 4)]
  for function in (distances.kid, distances.prdc, distances.nearest):
    for bad, message in (
        ([], 'no rows'),
        (nan, 'values that are not finite'),
        (wide, 'rows have .* dimensions, expected equal numbers'),
        ([*ok, *wide], 'rows have .* dimensions, expected equal numbers'),
        ([np.zeros([3])], r'a block has shape \(3,\), expected \[n, D\]'),
        ([np.zeros([0, 3])], r'a block has shape \(0, 3\)'),
    ):
      with pytest.raises(ValueError, match=message):
        function(bad, ok)
      with pytest.raises(ValueError, match=message):
        function(ok, bad)
  for function in (distances.prdc, distances.nearest):
    with pytest.raises(ValueError, match='can be iterated only once'):
      function(ok, iter(ok))
  with pytest.raises(ValueError, match='5 rows, expected more than k = 5'):
    distances.prdc(ok, [ok[0][:5]])
  with pytest.raises(ValueError, match='k is 0, expected'):
    distances.prdc(ok, ok, k_density=0)
  with pytest.raises(ValueError, match='block_size is 1, expected'):
    distances.kid(ok, ok, block_size=1)
  with pytest.raises(ValueError, match='1 row, expected at least 2'):
    distances.kid(ok, [ok[0][:1]])

  moments = _moments(ok[0])
  for function in (moments.merge, moments.without):
    with pytest.raises(ValueError, match='rows have 3 and 4 dimensions'):
      function(_moments(wide[0]))
  with pytest.raises(ValueError, match='rows have 3 and 4 dimensions'):
    moments.add(wide[0])
  with pytest.raises(ValueError, match='not finite'):
    moments.add(nan[0])
  with pytest.raises(ValueError, match='rows have 3 and 4 dimensions'):
    distances.frechet(moments, _moments(wide[0]))
  with pytest.raises(ValueError, match='1 rows, expected at least 2'):
    distances.frechet(moments, _moments(ok[0][:1]))

  p = np.full([20, 2], 0.5)
  with pytest.raises(ValueError, match='20 rows, expected 21'):
    distances.inception_score([p], 21)
  with pytest.raises(ValueError, match='40 rows, expected 20'):
    distances.inception_score([p, p], 20)
  with pytest.raises(ValueError, match='splits is 10, expected 1 to 9'):
    distances.inception_score([p], 9)
  for bad in (2 * p, np.array([[-0.5, 1.5]])):
    with pytest.raises(ValueError, match='negative or do not sum to 1'):
      distances.inception_score([bad], len(bad), splits=1)
