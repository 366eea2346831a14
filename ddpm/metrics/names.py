"""The metrics there are, and what they need."""

from ddpm.runtime.errors import BadArgument

# Minimum number of images per metric.
MINIMUM = {'fid': 2, 'kid': 4, 'is': 10, 'prdc': 6, 'nearest': 2, 'bpd': 2}

# Defaults of ddpm.evaluate and `ddpm.Run.evaluate`.
METRICS = ('fid', 'kid', 'is', 'prdc', 'nearest')
NUM_SAMPLES = 2000


def minimum(metrics):
  """Minimum number of images for a set of metrics."""
  return max(MINIMUM[name] for name in metrics)


def check_metrics(metrics):
  """Raises UserError if there are no metrics, or unknown ones."""
  if not metrics or set(metrics) - set(MINIMUM):
    raise BadArgument(
        f'metrics is {",".join(metrics)}, expected some of:'
        f' {", ".join(sorted(MINIMUM))}'
    )


def check_number(number, metrics):
  """Raises UserError if there are fewer samples than the metrics need."""
  least = minimum(metrics)
  if number < least:
    raise BadArgument(
        f'num_samples is {number}, expected at least {least} for the metrics'
        f' {",".join(sorted(metrics))}'
    )
