"""Methods for fine-tuning a base on a task: one file each."""
