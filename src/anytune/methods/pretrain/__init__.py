"""Methods for continual pre-training of a base: one file each."""
