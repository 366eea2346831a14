"""Data sets and the batches of a run."""
