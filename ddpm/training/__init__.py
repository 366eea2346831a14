"""The loop, the step and the state of a run."""
