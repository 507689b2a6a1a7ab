"""``python -m anytune`` is the ``anytune`` command."""

from anytune.cli.main import main

if __name__ == "__main__":
    main()
