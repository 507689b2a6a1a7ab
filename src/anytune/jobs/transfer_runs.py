"""The runs of a grid of transfers: source prompts, then the arms, each once what it stands on is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter
from anytune.evaluate.transfer_arms import AND
from anytune.evaluate.transferability import random_score
from anytune.jobs.bundles import BundledRun, run_bundles
from anytune.jobs.command import Command
from anytune.jobs.failures import failures_kept
from anytune.jobs.ranking import Ranking
from anytune.jobs.scoring import encodings_kept
from anytune.jobs.transfer_design import RESTART_STRIDE, Design, TransferArm, settings_of
from anytune.jobs.tune import tune
from anytune.jobs.tuning_plan import TuningPlan
from anytune.store import Entry, Store
from anytune.store.search import goodness


@dataclass(frozen=True)
class Planned:
    """A run of the grid.

    Attributes:
        source: name of the source task it goes back to (several: ``A + B``); None without one.
        seed: of the comparison; a restart's own is another one.
        before: runs it stands on: the source's, the teacher's and those below it.
    """

    arm: str
    source: str | None
    target: str
    seed: int
    restart: int
    rate: float | None
    call: Mapping[str, Any]
    plan: TuningPlan
    before: tuple[Entry, ...] = ()

    @property
    def key(self) -> str:
        """The run key."""
        return self.plan.identity(self.plan.runtime()).key


@dataclass
class Made:
    """What is stored so far: the source prompts, the rankings, and the arms' runs."""

    design: Design
    base: Any
    store: Store
    #: source task -> its prompt; a source whose run diverged is not here
    sources: dict[str, Entry] = field(default_factory=dict)
    #: target -> the ranking of its sources
    rankings: dict[str, Ranking] = field(default_factory=dict)
    planned: list[Planned] = field(default_factory=list)
    #: run key -> the artefact
    entries: dict[str, Entry] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)

    def refresh(self) -> None:
        """Look into the store again."""
        self.entries = {entry.manifest.run: entry for entry in self.store.find("delta")}

    def best(self, arm: str, source: str | None, target: str, seed: int) -> Planned | None:
        """Of an arm's runs that differ in rate or restart the one that validates best; None if all diverged."""
        found = [
            one for one in self.planned
            if (one.arm, one.source, one.target, one.seed) == (arm, source, target, seed)
            and self.entries[one.key].score() is not None
        ]  # fmt: skip
        return max(found, key=lambda one: _goodness(self.entries[one.key]), default=None)


def _goodness(entry: Entry) -> float:
    score = entry.score()
    return -math.inf if score is None else goodness(entry.main_metric(), score)


# Plans


def plan_sources(made: Made) -> list[Planned]:
    """The runs of the source prompts."""
    design = made.design
    return [
        planned_run(
            made, "source", task, task.name, design.source_seed, method=design.source_method, keep="weights",
            training=design.source_training, size=design.source_size,
        )
        for task in design.sources
    ]  # fmt: skip


def plan_arm(made: Made, arm: TransferArm) -> Iterator[Planned]:
    """The runs of an arm whose sources, rankings and teachers are there."""
    design = made.design
    keep = design.keep(arm)
    for task in design.targets_of(arm):
        for seed in arm.seeds:
            for source in sources_of(made, arm, task.name, seed):
                given, before = _given(made, arm, source, task.name, seed)
                if given is None:
                    continue
                for rate in arm.rates or (None,):
                    for restart in range(arm.restarts):
                        yield planned_run(
                            made, arm.name, task, source, seed, method=arm.method, keep=keep, training=arm.training,
                            size=design.train_size, rate=rate, restart=restart, before=before, **given,
                        )  # fmt: skip


def sources_of(made: Made, arm: TransferArm, target: str, seed: int) -> Sequence[str | None]:
    """The sources an arm is run from, for one target and seed; ``[None]`` for an arm without."""
    design = made.design
    if arm.sources == "none":
        return [None]
    allowed = [task.name for task in design.sources
               if task.name in made.sources and design.may_start(task.name, target)]  # fmt: skip
    if arm.sources == "random":
        return sorted(allowed, key=lambda name: random_score(name, target, seed))[-1:]
    if arm.sources == "chosen":
        best = [one.task for one in made.rankings[target].top(arm.together)] if target in made.rankings else []
        return [AND.join(best)] if best else []
    return [name for name in allowed if arm.sources == "all" or name in arm.sources]


def _given(
    made: Made, arm: TransferArm, source: str | None, target: str, seed: int
) -> tuple[dict[str, Any] | None, tuple[Entry, ...]]:
    """What a run is given beside its task, and the runs before it; None where a teacher diverged."""
    if source is not None and arm.together > 1:
        return _given_several(made, arm, source.split(AND), target, seed)
    before: tuple[Entry, ...] = () if source is None else (made.sources[source],)
    if arm.teacher is None:
        return ({} if source is None else {"sources": [made.sources[source].folder]}), before
    teacher = made.design.arm(arm.teacher)
    if teacher.sourced:
        found, similarity = made.best(teacher.name, source, target, seed), _similarity(made, source, target)
    else:  # another run of the same task: the next seed's, which drew other weights and another order
        seeds = teacher.seeds
        found = made.best(teacher.name, None, target, seeds[(seeds.index(seed) + 1) % len(seeds)])
        similarity = 1.0 if source is None else _similarity(made, source, target)
    if found is None:
        return None, ()
    entry = made.entries[found.key]
    return {"teachers": [_named(entry, similarity)]}, (*found.before, entry)


def _given_several(
    made: Made, arm: TransferArm, names: Sequence[str], target: str, seed: int
) -> tuple[dict[str, Any] | None, tuple[Entry, ...]]:
    """As :func:`_given`, of an arm that is given several sources, or the teachers from them, at once."""
    similar = [_similarity(made, name, target) for name in names]
    if any(one is None for one in similar):
        similar = [None] * len(names)  # weighed by what is known of all of them
    if arm.teacher is None:
        entries = [made.sources[name] for name in names]
        given = [_named(entry, one) for entry, one in zip(entries, similar, strict=True)]
        return {"sources": given}, tuple(entries)
    taught = [made.best(arm.teacher, name, target, seed) for name in names]
    found = [one for one in taught if one is not None]
    if len(found) < len(names):
        return None, ()
    teachers = [made.entries[one.key] for one in found]
    given = [_named(entry, one) for entry, one in zip(teachers, similar, strict=True)]
    stood_on = {entry.manifest.run: entry for one in found for entry in one.before}
    return {"teachers": given}, (*stood_on.values(), *teachers)


def _named(entry: Entry, similarity: float | None) -> Any:
    return entry.folder if similarity is None else {"delta": entry.folder, "similarity": similarity}


def _similarity(made: Made, source: str | None, target: str) -> float | None:
    ranking = made.rankings.get(target)
    row = next((one for one in ranking.ranked if one.task == source), None) if ranking else None
    return row.similarity if row else None


def planned_run(
    made: Made, arm: str, task: Task, source: str | None, seed: int, *, method: Any, keep: str,
    training: Mapping[str, Any], size: int | None, rate: float | None = None, restart: int = 0,
    before: tuple[Entry, ...] = (), **given: Any,
) -> Planned:  # fmt: skip
    """A run of an arm, on the rows that its seed draws.

    Args:
        size: training rows; None for all.
        given: ``sources`` or ``teachers`` of :func:`anytune.tune`.
    """
    settings = settings_of(training, rate).model_dump(exclude_unset=True)
    size = None if size is None or size >= len(task.train) else size
    drawn: dict[str, Any] = {} if size is None else {"train_size": size, "subset_seed": seed}
    command = Command.of(
        made.store, made.design.base, task, training=settings, seeds=[seed + RESTART_STRIDE * restart],
        keeps_failure=True, **drawn, **given,
    )  # fmt: skip
    tags = {"arm": arm, **({"source": source} if source else {})}
    [plan] = command.plans(method, keep, None, tags)
    call = {
        "base": made.base, "task": task, "store": str(made.store.folder), "method": method, "training": settings,
        "seeds": list(command.seeds), "keep": keep, "tags": tags, **drawn, **given,
    }  # fmt: skip
    return Planned(arm, source, task.name, seed, restart, rate, call, plan, before)


# Making them


def make(
    made: Made, planned: Sequence[Planned], title: str, workers: int | None, fan_out: str, tell: Reporter
) -> None:
    """Make the runs that the store lacks; those of one target stay together."""
    made.refresh()
    missing: dict[str, Planned] = {}
    for one in planned:
        if one.key not in made.entries:
            missing.setdefault(one.key, one)
    if missing:
        tell.say(f"{title}: {len(missing)} runs to make, {len(planned) - len(missing)} are in the store")
        bundled = [BundledRun(f"{one.arm} on {one.target}", one.call, one.plan) for one in missing.values()]
        run_bundles(
            bundled, make_runs, title=title, base=made.base, workers=workers, fan_out=fan_out, reporter=tell
        )  # fmt: skip
        made.refresh()
    made.planned += planned


def make_runs(calls: Sequence[Mapping[str, Any]], reporter: Reporter) -> None:
    """Some runs, one after the other; one that diverges is stored as failed."""
    with failures_kept(), encodings_kept():
        for call in calls:
            tune(**call, reporter=reporter, workers=1)
