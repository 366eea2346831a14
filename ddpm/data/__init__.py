"""From a data set's name to the batches of a run."""
