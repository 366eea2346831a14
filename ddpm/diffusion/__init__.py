"""Schedules, processes, losses and solvers: NumPy and TensorFlow only."""
