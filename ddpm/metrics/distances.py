"""Distances between two sets of features, in NumPy and float64.

Features [N, D] are passed as blocks: an iterable of arrays [n, D] with the
rows in order. Block boundaries affect results only by the rounding of sums.
Real rows come first, generated rows second.

All functions raise ValueError if dimensions differ, values are not finite, or
there are too few rows.
"""

import numpy as np

# Distances are computed in tiles of _ROWS x _ROWS.
_ROWS = 2048
# Pairs per batch when distances are recomputed exactly.
_PAIRS = 1024


class Moments:
  """Streaming mean and covariance of features; memory [D, D].

  Sets are merged by the formulas of Chan, Golub and LeVeque 1983, which lose
  no precision to a large mean.

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
    """Inverse of `to_arrays`."""
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
    """The state as a dict of arrays, for `np.savez`."""
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
    """Adds the rows of another `Moments`."""
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
    """The moments with a subset of the rows removed."""
    _check_dimensions(self.mean, other.mean)
    rest = Moments(len(self.mean))
    rest.count = self.count - other.count
    if rest.count < 1:
      raise ValueError(
          f'cannot remove {other.count} rows, expected fewer than'
          f' {self.count}'
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
    """Unbiased covariance, float64 [D, D], as in `np.cov`."""
    if self.count < 2:
      raise ValueError(f'{self.count} rows, expected at least 2')
    return self._scatter / (self.count - 1)


def frechet(a, b):
  """Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6).

  tr (C1 C2)^1/2 is the sum of the singular values of A1' A2, where A A' = C.
  This avoids the root of a non-symmetric product, has no imaginary part to
  discard, and handles singular covariances (N < D).

  Args:
    a, b: `Moments` of at least 2 rows.

  Returns:
    Non-negative float; values below 0 are rounding errors and become 0.
  """
  _check_dimensions(a.mean, b.mean)
  difference = a.mean - b.mean
  cross = _factor(a.covariance).T @ _factor(b.covariance)
  overlap = np.linalg.svd(cross, compute_uv=False).sum()
  trace = np.trace(a.covariance) + np.trace(b.covariance)
  return max(0.0, float(difference @ difference + trace - 2.0 * overlap))


def kid(real_blocks, fake_blocks, block_size=1000):
  """Kernel distance (Bińkowski et al. 2018): unbiased MMD^2 for (x'y/D + 1)^3.

  The mean over disjoint pairs of blocks. A partial last block is dropped; a
  set of fewer than block_size rows is one block.

  Args:
    real_blocks: features of real images, an iterable of arrays [n, D].
    fake_blocks: features of samples, the same.
    block_size: rows of a block, at least 2.

  Returns:
    (value, standard error); the error is nan for a single pair.
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
  """exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al. 2016).

  Args:
    probability_blocks: iterable of arrays [n, classes] of p(y|x).
    count: N, the total number of rows.
    splits: number of runs of consecutive rows that are scored separately.

  Returns:
    (mean, standard deviation) over the splits, as in the authors' code. Scores
    range from 1 to the number of classes.
  """
  if not 1 <= splits <= count:
    raise ValueError(
        f'splits is {splits}, expected 1 to {count}, the number of rows'
    )
  edges = np.arange(splits + 1) * count // splits
  entropies, sums, seen = np.zeros([splits]), 0.0, 0
  for block in probability_blocks:
    block = _checked(block)
    if (block < 0).any() or (np.abs(block.sum(axis=1) - 1) > 1e-2).any():
      raise ValueError('probabilities are negative or do not sum to 1')
    if not seen:
      sums = np.zeros([splits, block.shape[1]])
    _check_dimensions(sums, block)
    for split in range(splits):
      first, last = np.maximum(edges[split : split + 2] - seen, 0)
      p = block[first:last]
      entropies[split] += _sum_p_log_p(p)
      sums[split] += p.sum(axis=0)
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

  Each row has a ball that reaches to its k-th nearest neighbour in its own
  set, itself excluded.

  Precision is the share of fake rows inside any real ball, recall the reverse
  (Kynkäänniemi et al. 2019, k = 3). These balls are closed, d <= r, as in
  their equation 2 and code.

  Density is the mean number of real balls that contain a fake row, over k.
  Coverage is the share of real balls that do (Naeem et al. 2020, k = 5).
  These balls are open, d < r, as in their code: a set has density 1 against
  itself, and a row with more than k copies has an empty ball and is never
  covered.

  Memory is O(N k) plus one 2,048 x 2,048 tile of distances.

  Args:
    real_blocks, fake_blocks: re-iterable blocks.
    k_precision, k_density: numbers of neighbours.

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
  """Euclidean distance from each query to its nearest reference row.

  Args:
    query_blocks: iterable of arrays [n, D].
    reference_blocks: re-iterable blocks.

  Returns:
    float64 [N]; exactly 0 for rows that are in the reference.
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
  """Validates a block and converts it to float64."""
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or not features.size:
    raise ValueError(f'a block has shape {features.shape}, expected [n, D]')
  if not np.isfinite(features).all():
    raise ValueError('a block has values that are not finite')
  return features


def _check_dimensions(a, b):
  if a.shape[-1] != b.shape[-1]:
    raise ValueError(
        f'rows have {a.shape[-1]} and {b.shape[-1]} dimensions, expected equal'
        ' numbers'
    )


def _check_walkable(blocks):
  if iter(blocks) is blocks:
    raise ValueError('blocks can be iterated only once, pass a list instead')


def _cut(blocks, size):
  """Yields the rows in blocks of `size`; the last one may be smaller."""
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
    raise ValueError('no rows, expected at least 1')
  if len(held):
    yield held


def _numbered(blocks):
  """Yields (slice of the rows, block)."""
  first = 0
  for block in _cut(blocks, _ROWS):
    yield slice(first, first + len(block)), block
    first += len(block)


def _factor(covariance):
  """A [D, D] such that A A' = C."""
  values, vectors = np.linalg.eigh(covariance)
  return vectors * np.sqrt(np.maximum(values, 0.0))


def _kernel(x, y):
  return (x @ y.T / x.shape[1] + 1.0) ** 3


def _mean_kernel_of_others(x):
  """The mean kernel over pairs of different rows."""
  kernel = _kernel(x, x)
  return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def _sum_p_log_p(p):
  return np.sum(p * np.log(np.where(p > 0, p, 1.0)))


def _squared_distances(x, y):
  """|x|^2 + |y|^2 - 2 x'y, fast but inexact.

  Rounding depends on the blocks, and close rows may lose all digits.

  Returns:
    (squared distances, bounds of their difference from `_settle`'s), each
    [N, M].
  """
  _check_dimensions(x, y)
  norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
  # An inner product's error is at most D u |x| |y|, u = eps / 2 (Higham 2002,
  # equation 3.5). The factor also covers the norms and `_settle`.
  bound = 2.0 * (x.shape[1] + 2) * np.finfo(np.float64).eps
  return norms - 2.0 * (x @ y.T), bound * norms


def _settle(squared, x, y, mask):
  """Overwrites masked entries with |x - y|^2; squared and mask are [N, M].

  This value does not depend on the blocks: equal rows have distance 0, and
  ties are exact.
  """
  rows, columns = np.nonzero(mask)
  for first in range(0, len(rows), _PAIRS):
    i, j = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
    squared[i, j] = np.square(x[i] - y[j]).sum(axis=1)


def _smallest(smallest, x, y, same=False):
  """Updates the k smallest squared distances of x with those to y.

  Args:
    smallest: [N, k], the smallest so far, or inf.
    x, y: rows, [N, D] and [M, D].
    same: whether y is x; a row is not its own neighbour.

  Returns:
    [N, k], unordered.
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
  """Squared distances to the k-th nearest neighbours, [N, len(ks)]."""
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
