"""Exponential moving averages of the weights."""


def update(average, params, decay):
  """One step of the average, from its own start (no correction), as Ho's.

  Args:
    average: float32 [P].
    params: float32 [P], the weights after the step.
    decay: share of the old average that stays.

  Returns:
    float32 [P].
  """
  return average - (1.0 - decay) * (average - params)
