"""The training loop, its checkpoints, seeds, precision and progress."""
