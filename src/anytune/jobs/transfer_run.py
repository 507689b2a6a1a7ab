"""One new task from a library of prompts: ``anytune transfer run``.

Rank the stored prompts for the task, start from each of the first few (these runs are the teachers), teach a student
by each, and stand beside them plain prompt tuning, LoRA and full tuning with the same steps. Every run is one that
:func:`anytune.tune` makes and stands in the store; the one that validates best is what the command gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings
from anytune.errors import SettingsError
from anytune.evaluate.scores import number
from anytune.jobs.arms import merged
from anytune.jobs.command import check_methods, check_seeds
from anytune.jobs.failures import failures_kept
from anytune.jobs.opening import open_base, open_store, open_task
from anytune.jobs.prompt_library import prompts_of
from anytune.jobs.prompt_sources import References, given_prompts
from anytune.jobs.ranking import Ranked, Ranking
from anytune.jobs.task_features import ROWS
from anytune.jobs.transfer import empty_library, rank
from anytune.jobs.transfer_design import check_prompt, with_prompt
from anytune.jobs.tune import Source, tune
from anytune.manifests import load_json
from anytune.models.adapters import CONFIG_FILE
from anytune.models.base import Base
from anytune.models.soft_prompt_config import config_from_peft
from anytune.store import Entry, Store
from anytune.store.search import goodness

#: What stands beside the transfers where nobody says otherwise, with the same steps.
BESIDE = ("lora", "full")


@dataclass(frozen=True)
class Arm:
    """The runs of one way to tune the task.

    Attributes:
        source: task of the prompt it goes back to; None without one.
        spent: steps of one run, those of its teacher among them (not those of the source, which was there).
    """

    name: str
    source: str | None
    runs: Sequence[Entry]
    spent: float

    def mean(self, split: str) -> float | None:
        """Mean score over seeds; None if a run diverged."""
        values = [number(entry.score(split)) for entry in self.runs]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class TransferRun:
    """What came of it. ``best`` is the run that validates best among those whose weights were kept; it is stored."""

    task: str
    metric: str
    ranking: Ranking
    arms: Sequence[Arm]
    best: Entry

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows for a terminal, in the order in which the arms were run."""
        head = ["arm", "source", "seeds", "validation", f"test {self.metric}", "steps", "kept"]
        return head, [
            [one.name, one.source, len(one.runs), _shown(one.mean("validation")), _shown(one.mean("test")),
             round(one.spent), "best" if any(run.id == self.best.id for run in one.runs) else None]
            for one in self.arms
        ]  # fmt: skip

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "task": self.task, "metric": self.metric, "best": self.best.reference, "ranking": self.ranking.record(),
            "arms": [
                {"arm": one.name, "source": one.source, "steps": one.spent,
                 "runs": [{"reference": run.reference, "seed": run.manifest.seed, "failed": run.manifest.failed,
                           "validation": run.score("validation"), "test": run.score("test")} for run in one.runs]}
                for one in self.arms
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(" ".join("-" if value is None else str(value) for value in row) for row in self.table()[1])


def _shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def transfer_run(
    task: Task | Source | Mapping[str, Any],
    base: Base | Entry | Source,
    *,
    store: Store | Source | None = None,
    top: int = 3,
    metric: str | None = None,
    metrics: Sequence[str] | None = None,
    sources: References | None = None,
    prompt: Mapping[str, Any] | None = None,
    beside: Sequence[str] = BESIDE,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    train_size: int | None = None,
    rows: int = ROWS,
    workers: int | None = None,
    reporter: Reporter | None = None,
    **columns: Any,
) -> TransferRun:
    """Rank, transfer, teach, and compare.

    Args:
        task: what :func:`anytune.tune` takes.
        base: the base of the stored prompts.
        top: how many sources are tried.
        metric: the measure that ranks, see :func:`anytune.jobs.transfer.rank`.
        metrics: the measures of the ranking; by default all.
        sources: rank these prompts alone.
        prompt: settings of every prompt, ``{"length": 20}``; by default those of the first source.
        beside: tune methods that stand beside the prompts with the same steps, each at the rate it suggests.
        training: of every run; a ``learning_rate`` is for the prompts.
        seeds: of every arm.
        train_size: use so many training rows, the same for all arms.
        rows: training rows that the measures read.
        workers: processes for the runs of one arm.
        columns: how the task is read.

    Raises:
        StoreError: the library is empty.
        AnytuneError: bad input, or every run diverged.
    """
    if top < 1:
        raise SettingsError(f"top = {top}", why="At least one source is tried.", fix="top=3")
    tell, place, chosen = reporter or Silent(), open_store(store), check_seeds(seeds)
    opened = open_base(base, place)
    check_prompt(prompt)
    data = open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
    for name in beside:  # before the first of many runs
        check_methods(name, opened, [data])
    if train_size is not None:
        data = replace(data.subset(train_size=min(train_size, len(data.train)), seed=0), name=data.name)
    settings = merged(training, None)
    there = [one.entry for one in given_prompts(sources, opened, place)] or prompts_of(place, opened)
    if not there:
        raise empty_library(place, opened)
    shape = {**common_shape(there), **dict(prompt or {})}
    common: dict[str, Any] = {"store": place, "seeds": chosen, "training": settings, "reporter": tell,
                              "workers": 1 if workers is None else workers}  # fmt: skip

    def made(method: Any, arm: str, keep: str = "weights", **given: Any) -> list[Entry]:
        with failures_kept():
            return list(tune(opened, data, method=method, keep=keep, tags={"arm": arm}, **{**common, **given}))

    tell.say(f"prompt tuning of {data.name}, the control")
    plain = made(with_prompt("prompt_tuning", shape), "prompt tuning")
    own = next((entry for entry in plain if entry.manifest.form == "peft"), None)
    ranking = rank(
        data,
        opened,
        store=place,
        metric=metric,
        metrics=metrics,
        sources=sources,
        rows=rows,
        prompt=own,
        reporter=tell,
    )
    fitting = [row for row in ranking.ranked if shape_of(row.entry) == {key: shape[key] for key in ("kind", "length")}]
    if not fitting:
        raise SettingsError(
            f"no stored prompt is a {shape['kind']} prompt of length {shape['length']}",
            why="A prompt starts from one of its own kind and length.", fix="--set length=... --set kind=...",
        )  # fmt: skip
    arms = [Arm("prompt tuning", None, plain, _steps(plain))]
    arms += _transfers(fitting[:top], chosen, shape, made, tell)
    plainly = {key: value for key, value in settings.items() if key != "learning_rate"}
    for name in beside:
        tell.say(f"{name}, beside it")
        runs = made(name, name, "scores", training=plainly)
        arms.append(Arm(name, None, runs, _steps(runs)))
    return TransferRun(data.name, data.metric, ranking, arms, _best(arms))


def _transfers(
    rows: Sequence[Ranked], seeds: Sequence[int], shape: Mapping[str, Any], made: Any, tell: Reporter
) -> list[Arm]:
    """From each of the first sources the teachers, and the students they teach."""
    arms: list[Arm] = []
    for row in rows:
        tell.say(f"from {row.task}: teacher and student")
        teachers = made(with_prompt("prompt_transfer", shape), "transfer", sources=[row.entry])
        arms.append(Arm("transfer", row.task, teachers, _steps(teachers)))
        students = []
        for seed, teacher in zip(seeds, teachers, strict=True):
            if teacher.manifest.failed is None:
                given = {"delta": teacher, "similarity": row.similarity}
                students += made(with_prompt("panda", shape), "panda", teachers=[given], seeds=[seed])
        if students:
            arms.append(Arm("panda", row.task, students, _steps(students) + _steps(teachers)))
    return arms


def shape_of(entry: Entry) -> dict[str, Any]:
    """Kind and length of a stored prompt."""
    config = config_from_peft(load_json(entry.folder / CONFIG_FILE))
    return {"kind": config.kind, "length": config.length}


def common_shape(entries: Sequence[Entry]) -> dict[str, Any]:
    """Kind and length that most of the prompts have; the first of equals."""
    counts = Counter(tuple(shape_of(entry).items()) for entry in entries)
    return dict(counts.most_common(1)[0][0])


def _steps(runs: Sequence[Entry]) -> float:
    return sum(entry.manifest.steps for entry in runs) / max(1, len(runs))


def _best(arms: Sequence[Arm]) -> Entry:
    kept = [entry for one in arms for entry in one.runs if entry.manifest.form not in (None, "scores")]
    scored = [entry for entry in kept if entry.score() is not None]
    if not scored:
        raise SettingsError("every run with weights diverged", fix="a lower learning rate")
    return max(scored, key=lambda entry: goodness(entry.main_metric(), entry.score() or 0.0))
