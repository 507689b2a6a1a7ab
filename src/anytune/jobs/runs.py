"""The runs of one command, with what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable

from anytune.data.tasks import Task
from anytune.store import Entry


class Runs(list[Entry]):
    """The store entries of one command's runs, by size and seed.

    Attributes:
        control: the runs of the control (``against``), if it was asked for.
        task: what was tuned, before any size was cut from it.
    """

    def __init__(self, entries: Iterable[Entry] = (), control: Iterable[Entry] = (), task: Task | None = None) -> None:
        super().__init__(entries)
        self.control, self.task = list(control), task
