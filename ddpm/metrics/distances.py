"""Distances between two sets of features: NumPy, in float64.

Shapes: features are [N, D], and come as blocks: something iterable of arrays
[n, D] that are the rows in their order. How it is cut changes no result by
more than the rounding of a sum. Real rows come first, generated ones second.

All functions raise ValueError for rows that do not fit each other, are not
finite, or are too few.
"""

import numpy as np

# Distances are computed for this many rows against as many.
_ROWS = 2048
# Of these, so many pairs at a time by their difference.
_PAIRS = 1024


class Moments:
  """Mean and covariance of features that come in batches; memory [D, D].

  Sets are put together by the formulas of Chan, Golub and LeVeque 1983, which
  lose no digits to a large mean.

  Attributes:
    count: N, the number of rows.
    mean: float64 [D].
  """

  def __init__(self, dimensions):
    self.count = 0
    self.mean = np.zeros([dimensions])
    self._scatter = np.zeros([dimensions, dimensions])

  @classmethod
  def from_arrays(cls, arrays):
    """The moments that `to_arrays` gave."""
    moments = cls(len(arrays['mean']))
    if arrays['scatter'].shape != moments._scatter.shape:
      raise ValueError(
          f'scatter has shape {arrays["scatter"].shape}, expected'
          f' {moments._scatter.shape}'
      )
    moments.count = int(arrays['count'])
    moments.mean = np.array(arrays['mean'], np.float64)
    moments._scatter = np.array(arrays['scatter'], np.float64)
    return moments

  def to_arrays(self):
    """All there is to keep: dict of arrays, as for `np.savez`."""
    return {
        'count': np.array(self.count),
        'mean': self.mean.copy(),
        'scatter': self._scatter.copy(),
    }

  def add(self, features):
    """Adds a batch [n, D]."""
    features = _checked(features)
    batch = Moments(features.shape[1])
    batch.count = len(features)
    batch.mean = features.mean(axis=0)
    centred = features - batch.mean
    batch._scatter = centred.T @ centred
    self.merge(batch)

  def merge(self, other):
    """Adds the rows of another."""
    _check_dimensions(self.mean, other.mean)
    if not other.count:
      return
    total = self.count + other.count
    shift = other.mean - self.mean
    self._scatter += other._scatter
    self._scatter += np.outer(shift, shift) * (self.count * other.count / total)
    self.mean += shift * (other.count / total)
    self.count = total

  def without(self, other):
    """The moments of the rows left when others, among these, are taken out."""
    _check_dimensions(self.mean, other.mean)
    rest = Moments(len(self.mean))
    rest.count = self.count - other.count
    if rest.count < 1:
      raise ValueError(
          f'{other.count} rows are to be taken out, expected fewer than the'
          f' {self.count} there are'
      )
    rest.mean = self.mean + (self.mean - other.mean) * (
        other.count / rest.count
    )
    shift = other.mean - rest.mean
    rest._scatter = (
        self._scatter
        - other._scatter
        - np.outer(shift, shift) * (rest.count * other.count / self.count)
    )
    return rest

  @property
  def covariance(self):
    """Unbiased, float64 [D, D], as `np.cov`."""
    if self.count < 2:
      raise ValueError(f'{self.count} rows, expected at least 2')
    return self._scatter / (self.count - 1)


def frechet(a, b):
  """Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6).

  tr (C1 C2)^1/2 is the sum of the singular values of A1' A2, where A A' = C:
  no root of a product that is not symmetric, no imaginary part to throw away,
  and singular covariances (N < D) are like others.

  Args:
    a, b: `Moments` of at least 2 rows.

  Returns:
    Float, not negative: what is below 0, as for equal moments, is rounding.
  """
  _check_dimensions(a.mean, b.mean)
  difference = a.mean - b.mean
  cross = _factor(a.covariance).T @ _factor(b.covariance)
  overlap = np.linalg.svd(cross, compute_uv=False).sum()
  trace = np.trace(a.covariance) + np.trace(b.covariance)
  return max(0.0, float(difference @ difference + trace - 2.0 * overlap))


def kid(real_blocks, fake_blocks, block_size=1000):
  """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 for (x'y/D + 1)^3.

  It is the mean over disjoint pairs of blocks of rows. Rows that fill no block
  are left out, but a set of fewer than block_size rows is one block.

  Returns:
    (value, standard error); the error is nan where there is one pair.
  """
  if block_size < 2:
    raise ValueError(f'block_size is {block_size}, expected at least 2')
  values = []
  pairs = zip(_cut(real_blocks, block_size), _cut(fake_blocks, block_size))
  for real, fake in pairs:
    _check_dimensions(real, fake)
    rows = min(len(real), len(fake))
    if values and rows < block_size:
      break
    if rows < 2:
      raise ValueError(f'{rows} row, expected at least 2')
    values.append(
        _mean_kernel_of_others(real)
        + _mean_kernel_of_others(fake)
        - 2.0 * _kernel(real, fake).mean()
    )
  if len(values) == 1:
    return float(values[0]), float('nan')
  error = np.std(values, ddof=1) / np.sqrt(len(values))
  return float(np.mean(values)), float(error)


def inception_score(probability_blocks, count, splits=10):
  """exp of the mean divergence of p(y|x) from p(y) (Salimans et al. 2016).

  Args:
    probability_blocks: iterable of arrays [n, classes] of p(y|x).
    count: N, the rows of all blocks together.
    splits: number of parts, each of consecutive rows, with a score of its own.

  Returns:
    (mean, standard deviation) over the parts, as in the authors' code; 1 is
    the least a score can be, the number of classes the most.
  """
  if not 1 <= splits <= count:
    raise ValueError(f'splits is {splits}, expected 1 to {count}, the rows')
  edges = np.arange(splits + 1) * count // splits
  entropies, sums, seen = np.zeros([splits]), 0.0, 0
  for block in probability_blocks:
    block = _checked(block)
    if (block < 0).any() or (np.abs(block.sum(axis=1) - 1) > 1e-2).any():
      raise ValueError('probabilities are negative, or do not add up to 1')
    if not seen:
      sums = np.zeros([splits, block.shape[1]])
    _check_dimensions(sums, block)
    for part in range(splits):
      first, last = np.maximum(edges[part : part + 2] - seen, 0)
      p = block[first:last]
      entropies[part] += _sum_p_log_p(p)
      sums[part] += p.sum(axis=0)
    seen += len(block)
  if seen != count:
    raise ValueError(f'{seen} rows, expected {count}')
  # sum_i sum_y p_i log(p_i / q) = sum_i sum_y p_i log p_i - n sum_y q log q
  rows = np.diff(edges)
  marginals = np.array([_sum_p_log_p(s / n) for s, n in zip(sums, rows)])
  scores = np.exp(entropies / rows - marginals)
  return float(scores.mean()), float(scores.std())


def prdc(real_blocks, fake_blocks, k_precision=3, k_density=5):
  """Improved precision and recall; density and coverage.

  Around each row is a ball that reaches to its k-th neighbour in its own set,
  itself not counted. Precision is the share of fake rows within any real
  row's ball, recall the reverse (Kynkäänniemi et al. 2019, k = 3); a ball has
  its boundary, d <= r, as in their equation 2 and code. Density is the number
  of real balls a fake row is in, over k, and coverage the share of real balls
  that have a fake row (Naeem et al. 2020, k = 5); a ball lacks its boundary,
  d < r, as in their code. So a set has density 1 against itself, and a row of
  which there are more than k equal ones, whose ball is empty, is never
  covered.

  Memory is O(N k), and that of distances between 2,048 rows and as many.

  Args:
    real_blocks, fake_blocks: iterables that can be walked several times.
    k_precision, k_density: neighbours.

  Returns:
    Dict of floats: precision, recall, density, coverage.
  """
  ks = k_precision, k_density
  if min(ks) < 1:
    raise ValueError(f'k is {min(ks)}, expected at least 1')
  real_radii, fake_radii = _radii(real_blocks, ks), _radii(fake_blocks, ks)
  precise = np.zeros([len(fake_radii)], bool)
  density = np.zeros([len(fake_radii)], np.int64)
  recalled = np.zeros([len(real_radii)], bool)
  covered = np.zeros([len(real_radii)], bool)

  for i, real in _numbered(real_blocks):
    for j, fake in _numbered(fake_blocks):
      squared, error = _squared_distances(real, fake)
      limits = (
          real_radii[i, 0, None], real_radii[i, 1, None], fake_radii[j, 0]
      )  # fmt: skip
      close = [np.abs(squared - limit) <= error for limit in limits]
      _settle(squared, real, fake, np.any(close, axis=0))
      precise[j] |= (squared <= limits[0]).any(axis=0)
      recalled[i] |= (squared <= limits[2]).any(axis=1)
      inside = squared < limits[1]
      density[j] += inside.sum(axis=0)
      covered[i] |= inside.any(axis=1)
  return {
      'precision': float(precise.mean()),
      'recall': float(recalled.mean()),
      'density': float(density.mean() / k_density),
      'coverage': float(covered.mean()),
  }


def nearest(query_blocks, reference_blocks):
  """Euclidean distance of each query to the reference row nearest to it.

  Args:
    query_blocks: iterable of arrays [n, D].
    reference_blocks: iterable that can be walked several times.

  Returns:
    float64 [N]; exactly 0 for a row that is in the reference.
  """
  _check_walkable(reference_blocks)
  found = []
  for x in _cut(query_blocks, _ROWS):
    smallest = np.full([len(x), 1], np.inf)
    for y in _cut(reference_blocks, _ROWS):
      smallest = _smallest(smallest, x, y)
    found.append(np.sqrt(smallest[:, 0]))
  return np.concatenate(found)


def _checked(features):
  """A block in float64, if it is one."""
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or not features.size:
    raise ValueError(f'a block has shape {features.shape}, expected [n, D]')
  if not np.isfinite(features).all():
    raise ValueError('a block has values that are not finite')
  return features


def _check_dimensions(a, b):
  if a.shape[-1] != b.shape[-1]:
    raise ValueError(
        f'rows of {a.shape[-1]} and of {b.shape[-1]} dimensions, expected'
        ' equal numbers'
    )


def _check_walkable(blocks):
  if iter(blocks) is blocks:
    raise ValueError('blocks can be walked only once, expected say a list')


def _cut(blocks, size):
  """Yields the rows in blocks of `size`, the last one may have fewer."""
  held = None
  for block in blocks:
    block = _checked(block)
    if held is not None:
      _check_dimensions(held, block)
      block = np.concatenate([held, block])
    full = len(block) - len(block) % size
    for first in range(0, full, size):
      yield block[first : first + size]
    held = block[full:]
  if held is None:
    raise ValueError('no rows, expected some')
  if len(held):
    yield held


def _numbered(blocks):
  """Yields (slice, block): where a block's rows are among all."""
  first = 0
  for block in _cut(blocks, _ROWS):
    yield slice(first, first + len(block)), block
    first += len(block)


def _factor(covariance):
  """A with A A' = C, [D, D]."""
  values, vectors = np.linalg.eigh(covariance)
  return vectors * np.sqrt(np.maximum(values, 0.0))


def _kernel(x, y):
  return (x @ y.T / x.shape[1] + 1.0) ** 3


def _mean_kernel_of_others(x):
  """The mean kernel of rows with each other, themselves left out."""
  kernel = _kernel(x, x)
  return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def _sum_p_log_p(p):
  return np.sum(p * np.log(np.where(p > 0, p, 1.0)))


def _squared_distances(x, y):
  """|x|^2 + |y|^2 - 2 x'y, quick but inexact.

  Returns:
    (squared distances, bounds of how far they are from those of `_settle`),
    each [N, M]. Rounding depends on how rows are put in blocks, and where rows
    are near each other all digits may be lost.
  """
  _check_dimensions(x, y)
  norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
  # An inner product is off by D u |x| |y| at most (Higham 2002, equation 3.5),
  # u = eps / 2; the factor has room for the norms, and for `_settle`.
  bound = 2.0 * (x.shape[1] + 2) * np.finfo(np.float64).eps
  return norms - 2.0 * (x @ y.T), bound * norms


def _settle(squared, x, y, mask):
  """Puts |x - y|^2 in place for the pairs of a mask, [N, M].

  The same for two rows whatever blocks they are in: equal rows are at 0, and
  ties are ties.
  """
  rows, columns = np.nonzero(mask)
  for first in range(0, len(rows), _PAIRS):
    i, j = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
    squared[i, j] = np.square(x[i] - y[j]).sum(axis=1)


def _smallest(smallest, x, y, same=False):
  """The k smallest squared distances of x, some of which may be to y.

  Args:
    smallest: [N, k], the smallest ones so far, or inf.
    x, y: rows, [N, D] and [M, D].
    same: y is x, and no row is its own neighbour.

  Returns:
    [N, k], in any order.
  """
  k = smallest.shape[1]
  squared, error = _squared_distances(x, y)
  if same:
    np.fill_diagonal(squared, np.inf)
  most = np.partition(np.hstack([smallest, squared + error]), k - 1)[:, k - 1]
  near = squared - error <= most[:, None]
  _settle(squared, x, y, near & np.isfinite(squared))
  return np.partition(np.hstack([smallest, squared]), k - 1)[:, :k]


def _radii(blocks, ks):
  """Squared distances of rows to their k-th neighbours, [N, len(ks)]."""
  _check_walkable(blocks)
  radii = []
  for i, x in enumerate(_cut(blocks, _ROWS)):
    smallest = np.full([len(x), max(ks)], np.inf)
    for j, y in enumerate(_cut(blocks, _ROWS)):
      smallest = _smallest(smallest, x, y, same=i == j)
    radii.append(np.sort(smallest)[:, np.array(ks) - 1])
  radii = np.concatenate(radii)
  if len(radii) <= max(ks):
    raise ValueError(f'{len(radii)} rows, expected more than k = {max(ks)}')
  return radii
