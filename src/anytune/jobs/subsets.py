"""Low-resource subsets of a task for the runs of one command: which sizes, and who draws the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from anytune.data.tasks import Task
from anytune.errors import SettingsError

#: "run": each run draws its rows by its own seed; a number: all draw by this one, and differ in the rest alone.
SubsetSeed = int | Literal["run"]


@dataclass
class Subsets:
    """A task and the parts of it that runs train on; validation is never larger than the training part.

    Attributes:
        sizes: training sizes; None is the whole task.
        per_class: training examples of each class, in place of a size.
        seed: see :data:`SubsetSeed`.
    """

    task: Task
    sizes: Sequence[int | None]
    per_class: int | None = None
    seed: SubsetSeed = 0
    _made: dict[tuple[int | None, int], Task] = field(default_factory=dict)

    def seed_of(self, run_seed: int) -> int:
        """The seed that draws the rows of a run."""
        return run_seed if self.seed == "run" else int(self.seed)

    def of(self, size: int | None, run_seed: int) -> Task:
        """The task as a run of this size and seed sees it; equal parts are one object."""
        if size is None and self.per_class is None:
            return self.task
        key = (size, self.seed_of(run_seed))
        if key not in self._made:
            self._made[key] = self.task.subset(train_size=size, per_class=self.per_class, seed=key[1])
        return self._made[key]


def subsets(
    task: Task, train_size: int | None, train_sizes: Sequence[int] | None, per_class: int | None,
    subset_seed: SubsetSeed | None,
) -> Subsets:  # fmt: skip
    """The parts of ``task`` that a command trains on, checked.

    Raises:
        SettingsError: ``train_sizes`` beside another size, none or one twice, or larger than what there is;
            ``subset_seed`` that is no seed, or where nothing is drawn.
    """
    if subset_seed is not None and train_size is train_sizes is per_class is None:
        raise SettingsError(
            f"subset_seed = {subset_seed!r} without a size", why="All rows are used.", fix="train_size=100"
        )
    seed: SubsetSeed = 0 if subset_seed is None else subset_seed
    if seed != "run" and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise SettingsError(
            f"subset_seed = {subset_seed!r}",
            why="run: each run draws its own rows by its seed; a whole number: all draw the same.",
            fix="subset_seed=run",
        )
    if train_sizes is None:
        return Subsets(task, [train_size], per_class, seed)
    if train_size is not None or per_class is not None:
        other = f"train_size={train_size}" if train_size is not None else f"per_class={per_class}"
        raise SettingsError(f"both train_sizes and {other}", why="They ask for different sizes.", fix="one of them")
    for size in train_sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SettingsError(f"train_sizes = {list(train_sizes)}", why="A size is a count of rows, at least 1.")
        if size > len(task.train):
            raise SettingsError(
                f"train_sizes holds {size}, and '{task.name}' has {len(task.train)} training rows",
                why="A run of fewer rows would stand under the wrong size.",
                fix=f"train_sizes: {sorted({min(size, len(task.train)) for size in train_sizes})}",
            )
    if not train_sizes or len(set(train_sizes)) != len(train_sizes):
        raise SettingsError(
            f"train_sizes = {list(train_sizes)}", why="Sizes must be distinct, and at least one.",
            fix="train_sizes: [100, 300, 1000]",
        )  # fmt: skip
    return Subsets(task, list(train_sizes), None, seed)
