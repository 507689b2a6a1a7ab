"""What a user calls from Python: one file per verb, each a documented function that the command line only wraps."""
