"""The runs of a grid, spread over processes in bundles that follow each other in the grid.

Runs that stand side by side share texts and bases, so a process that makes several of them in a row opens these once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.engine.fanout import Unit, run_units, worker_count
from anytune.engine.progress import Reporter
from anytune.engine.settings import total_steps
from anytune.errors import SettingsError
from anytune.jobs.tuning_plan import TuningPlan
from anytune.jobs.workers import chosen_workers
from anytune.models.base import Base

#: Bundles for each worker, so that none waits long for the last one.
BUNDLES_EACH = 4


@dataclass(frozen=True)
class BundledRun:
    """A run of a grid: what progress calls it, what it is made by, and what it will be."""

    name: str
    call: Mapping[str, Any]
    plan: TuningPlan


def run_bundles(
    runs: Sequence[BundledRun], make: Callable[..., None], *, title: str, base: Any, workers: int | None,
    fan_out: str, reporter: Reporter,
) -> None:  # fmt: skip
    """Make runs by ``make(calls=[...], reporter=...)``, in this process or in several.

    Args:
        make: a function of a module, so that other processes find it.
        base: what the calls name as their base; an open one cannot be sent to workers.
        workers: processes; None for the rule of :mod:`anytune.jobs.workers`.

    Raises:
        SettingsError: workers were asked for, and the base is an open one.
    """
    asked = workers if workers is not None else chosen_workers([one.plan for one in runs], runs[0].call)
    count = worker_count(len(runs), asked)
    if workers is not None and workers > 1 and isinstance(base, Base):
        raise SettingsError("workers cannot be sent an open base", fix="base=its folder or name")
    if count > 1:
        units = list(_units(runs, make, title, count))
        run_units(units, title=title, reporter=reporter, workers=count, fan_out=fan_out)
    else:
        make(calls=[one.call for one in runs], reporter=reporter)


def _units(runs: Sequence[BundledRun], make: Callable[..., None], title: str, count: int) -> Iterator[Unit]:
    size = max(1, math.ceil(len(runs) / (count * BUNDLES_EACH)))
    for number, start in enumerate(range(0, len(runs), size), 1):
        part = runs[start : start + size]
        steps = sum(steps_of(one.plan) for one in part)
        yield Unit(f"{title} {number}: {part[0].name}", make, {"calls": [one.call for one in part]}, steps)


def steps_of(plan: TuningPlan | None) -> int:
    """Optimizer steps of a run; none where nothing is trained."""
    if plan is None or not plan.trains:
        return 0
    return total_steps(plan.settings, math.ceil(len(plan.task.train) / plan.settings.batch_size))
