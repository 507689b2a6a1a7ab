"""The runs of one command, one after the other: made, or forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import Runtime
from anytune.jobs.forecast import Forecast, Prepared, announce_precision, forecast_run
from anytune.jobs.resuming import Resume, insist
from anytune.jobs.scoring import EncodedTask
from anytune.jobs.tuning import prepared, tune_once
from anytune.jobs.tuning_plan import TuningPlan, name_of
from anytune.store import Entry, Store


def tune_all(
    plans: Sequence[TuningPlan],
    store: Store,
    *,
    encoded: Callable[[Task], EncodedTask],
    reporter: Reporter | None = None,
    resume: Resume = "auto",
) -> list[Entry]:
    """The runs of one command, one after the other; those of one task share it as token ids.

    Raises:
        TrainingError: ``resume`` is "must" and none of the runs was begun before.
    """
    reporter = reporter or Silent()
    if resume == "must":
        insist(store, "delta", [plan.identity(plan.runtime()) for plan in plans])
    if any(not store.find("delta", run=plan.identity(plan.runtime()).key) for plan in plans):
        announce_precision(plans[0].runtime(), plans[0].settings.precision, reporter)
    shared = _last_kept(encoded)
    return [tune_once(plan, store, encoded=shared, reporter=reporter, resume=resume) for plan in plans]


def _last_kept(encoded: Callable[[Task], EncodedTask]) -> Callable[[Task], EncodedTask]:
    """The function with its last answer kept, for as long as it is asked about the same task."""
    last: list[tuple[str, EncodedTask]] = []

    def called(task: Task) -> EncodedTask:
        if not last or last[0][0] != task.content:
            last[:] = [(task.content, encoded(task))]
        return last[0][1]

    return called


def forecast_all(
    plans: Sequence[TuningPlan], store: Store, *, encoded: Callable[[Task], EncodedTask]
) -> list[Forecast]:
    """What the runs of one command would cost; one of a size and method is tried, the others differ in their seed."""
    shared = _last_kept(encoded)
    made: list[Forecast] = []
    for plan in plans:
        runtime = plan.runtime()
        alike = [
            one for one, other in zip(made, plans, strict=False)
            if one.trial is not None and len(other.task.train) == len(plan.task.train)
            and [method.name for method in other.methods] == [method.name for method in plan.methods]
        ]  # fmt: skip
        made.append(forecast_run(
            store, "delta", plan.identity(runtime), runtime, partial(_prepared, plan, shared, runtime),
            name=name_of(plan), keeps_weights=plan.keep == "weights",
            like=alike[0] if alike else None,
            # the test split is scored once, after the run
            afterwards=len(plan.task.test) / max(1, len(plan.task.validation)),
        ))  # fmt: skip
    return made


def _prepared(
    plan: TuningPlan, encoded: Callable[[Task], EncodedTask], runtime: Runtime
) -> AbstractContextManager[Prepared]:
    return prepared(plan, encoded(plan.task), runtime)
