"""What is in a workdir: config, checkpoints, lock, logs."""
