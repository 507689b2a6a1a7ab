"""What an upgrade of a store would cost, without doing it: ``anytune upgrade --dry-run``."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.errors import AnytuneError
from anytune.jobs.upgrade_choices import is_final, stored_choices
from anytune.jobs.upgrade_headroom import STEP as HEADROOM
from anytune.jobs.upgrade_headroom import way_of_tuning
from anytune.jobs.upgrade_results import Outcome
from anytune.jobs.upgrade_runs import Bench, seconds_for, told
from anytune.jobs.upgrade_shelf import Shelf
from anytune.jobs.upgrade_steps import COEFFICIENTS, STEPS
from anytune.store import Entry

#: Held-out rows that are really scored, to see how long one takes.
TRIED_ROWS = 64


@dataclass(frozen=True)
class Awaited:
    """One delta that would be upgraded.

    Attributes:
        state: "new", "stored" if it is decided already, "problem".
        rows: held-out rows it is scored on.
        training: whether there are training rows.
        scoring: seconds of scoring it, all coefficients included.
        training_seconds: step -> seconds at most, by the speed it was tuned at; steps end as soon as they are enough.
        problem: why it would be left out.
    """

    delta: str
    task: str = ""
    method: str = ""
    state: str = "new"
    rows: int = 0
    training: bool = False
    scoring: float = 0.0
    training_seconds: Mapping[str, float] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class UpgradeForecast:
    """What an upgrade would take.

    Attributes:
        scoring: seconds to score all deltas, which is the least it takes.
        at_most: seconds if every delta had to climb to the last step; looking for headroom included.
    """

    deltas: Sequence[Awaited]
    scoring: float
    at_most: float
    workers: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"deltas": [vars(one) for one in self.deltas], "scoring_seconds": round(self.scoring, 1),
                "at_most_seconds": round(self.at_most, 1), "workers": self.workers}  # fmt: skip


def forecast_upgrade(
    shelf: Shelf, entries: Sequence[Entry], broken: Sequence[Outcome], key: str, only: Collection[str] | None,
    workers: int, headroom: bool = False,
) -> UpgradeForecast:  # fmt: skip
    """Look at every delta; score some rows of the first that can be scored.

    Args:
        headroom: one delta of each task is tuned on as well.
    """
    made = stored_choices(shelf, key)
    bench, a_row, found = Bench(shelf), None, []
    wanted = [step.name for step in STEPS if step.share and (only is None or step.name in only)]
    for entry in entries:
        manifest = entry.manifest
        known: dict[str, Any] = {"delta": entry.reference, "task": manifest.task.name if manifest.task else "",
                 "method": "+".join(one.name.rpartition("/")[2] for one in manifest.methods)}  # fmt: skip
        if entry.id in made and is_final(made[entry.id]):
            found.append(Awaited(**known, state="stored"))
            continue
        try:
            sample = shelf.sample(entry)
            if a_row is None:
                few = sample.with_rows(validation=sample.validation[:TRIED_ROWS])
                delta = bench.own(entry)
                bench.score(shelf.old_base, delta, entry, few)  # the first pass also warms up
                began = time.perf_counter()
                bench.score(shelf.old_base, delta, entry, few)
                a_row = (time.perf_counter() - began) / len(few.validation)
        except AnytuneError as problem:
            found.append(Awaited(**known, state="problem", problem=told(problem)))
            continue
        rows, trains = len(sample.validation), shelf.source(entry) is not None
        climb = [name for name in wanted if name != "distill"] if trains else []
        found.append(Awaited(
            **known, rows=rows, training=trains, scoring=a_row * rows * (2 + len(COEFFICIENTS)),
            training_seconds={name: round(seconds_for(entry, name), 1) for name in climb},
        ))  # fmt: skip
    found += [Awaited(delta=one.delta, state="problem", problem=one.problem) for one in broken]
    scoring = sum(one.scoring for one in found)
    training = sum(sum((one.training_seconds or {}).values()) for one in found)
    if headroom:
        a_task = {way_of_tuning(entry): entry for entry, one in zip(entries, found, strict=False) if not one.problem}
        training += sum(seconds_for(entry, HEADROOM) for entry in a_task.values())
    return UpgradeForecast(found, scoring / workers, (scoring + training) / workers, workers)
