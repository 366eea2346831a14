"""Adam, learning rates, and EMAs of the weights."""
