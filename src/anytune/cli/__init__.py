"""The command line: one file per command, each only parsing and printing around one documented function.

Nothing heavy is imported before a command runs, so that ``anytune --help`` answers at once.
"""
