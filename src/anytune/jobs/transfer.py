"""Which stored prompts help a new task: ``anytune transfer rank``.

:func:`rank` reads a sample of the task's training texts once with every prompt of the library, which gives what the
measures of :mod:`anytune.evaluate.transferability` need (:mod:`anytune.jobs.ranking_study`); those that compare two
prompts need one of the task itself, which is looked for in the store, or tuned for a few steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import Runtime, make_runtime
from anytune.engine.settings import training_settings
from anytune.errors import DataError, SettingsError, StoreError, unknown
from anytune.jobs.opening import fitting, open_base, open_store, open_task
from anytune.jobs.prompt_library import Candidate, candidates, one_per_task, prompts_of, size_of
from anytune.jobs.prompt_sources import References, given_prompts
from anytune.jobs.ranking import PREFERRED, Measured, Ranked, Ranking, check_measures, ranked
from anytune.jobs.ranking_study import Study
from anytune.jobs.task_features import MAX_LENGTH, ROWS, SEED
from anytune.jobs.tune import Source, tune
from anytune.models.base import Base
from anytune.store import Entry, Store


def rank(
    task: Task | Source | Mapping[str, Any],
    base: Base | Entry | Source,
    *,
    store: Store | Source | None = None,
    metric: str | None = None,
    metrics: Sequence[str] | None = None,
    prompt: Entry | Source | None = None,
    train: int | None = None,
    sources: References | None = None,
    every: bool = False,
    rows: int = ROWS,
    seed: int = SEED,
    pooling: str = "mean",
    centring: str = "none",
    max_length: int = MAX_LENGTH,
    batch_size: int = 32,
    reporter: Reporter | None = None,
    **columns: Any,
) -> Ranking:
    """Rank the prompts of a base for a task.

    Args:
        task: what :func:`anytune.tune` takes.
        base: the base of the prompts.
        metric: the measure that ranks; by default the first of :data:`PREFERRED` that can be computed.
        metrics: the measures to compute; by default all.
        prompt: a stored prompt of this task, for the measures that compare two; by default the best one in the store.
        train: without one, tune a prompt of the task for so many steps (a run in the store like any other).
        sources: rank these prompts alone; by default of each task of the library the prompt that validates best.
        every: rank all prompts of the library, several of one task too.
        rows: training rows that are read, drawn by ``seed``.
        pooling: of task embeddings: "mean", "cls", "pooler" or "paper".
        centring: of task embeddings: "none", "library" or "base".
        max_length: tokens at which texts are cut.
        columns: how the task is read; see :func:`anytune.tune`.

    Raises:
        StoreError: the library is empty, or holds nothing but prompts of this task.
        SettingsError: an unknown measure, or a setting that cannot be.
        AnytuneError: bad input, or the measure that is to rank cannot be computed.
    """
    began, tell, place = time.perf_counter(), reporter or Silent(), open_store(store)
    opened = open_base(base, place)
    names = check_measures(metrics, metric)
    check_choices(rows, pooling, centring)
    data = open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
    length = fitting(training_settings({"max_length": max_length}), opened, asked=()).max_length
    given = [one.entry for one in given_prompts(sources, opened, place)]
    there = given or prompts_of(place, opened)
    if not there:
        raise empty_library(place, opened)
    runtime = make_runtime("fp32")
    found, unusable = candidates(there, opened, data, runtime=runtime)
    own = [one for one in found if one.is_self]
    others = [one for one in found if not one.is_self]
    if not given and not every:
        kept = {entry.id for entry in one_per_task([one.entry for one in others])}
        others = [one for one in others if one.entry.id in kept]
    left_out = {one.entry.reference: "of the task itself" for one in own}
    left_out |= {f"unusable {number}": what for number, what in enumerate(unusable, 1)}
    if not others:
        raise nothing_to_rank(place, data, len(own), unusable)
    target = _target_prompt(prompt, train, own, data, opened, place, runtime, tell)
    study = Study(
        task=data, base=opened, others=others, target=target, runtime=runtime, rows=rows, seed=seed, pooling=pooling,
        centring=centring, max_length=length, batch_size=batch_size, wanted=names,
    )  # fmt: skip
    tell.say(f"{len(others)} prompts to rank on {len(study.read)} rows of {data.name}")
    reading = study.reading_seconds()
    scored: dict[str, list[float | None]] = {}
    measured = []
    for name in names:
        values, one = study.measured(name)
        scored[name] = values
        measured.append(one)
    chosen = _ranking_measure(metric, scored, measured)
    rows_found = [
        Ranked(one.entry, one.name, {name: scored[name][place_] for name in names}, None, one.family, size_of(one))
        for place_, one in enumerate(others)
    ]  # fmt: skip
    return Ranking(
        data.name, opened.name, chosen, ranked(rows_found, chosen), measured, left_out, len(study.read), seed,
        time.perf_counter() - began, reading,
    )  # fmt: skip


def check_choices(rows: int, pooling: str, centring: str) -> None:
    """Refuse settings that cannot be.

    Raises:
        SettingsError: they cannot.
    """
    if rows < 1:
        raise SettingsError(f"rows = {rows}", why="A task is embedded by its texts.", fix=f"rows={ROWS}")
    for name, value, known in (
        ("pooling", pooling, ("mean", "cls", "pooler", "paper")), ("centring", centring, ("none", "library", "base")),
    ):  # fmt: skip
        if value not in known:
            raise unknown(name, value, known, SettingsError)


def empty_library(store: Store, base: Base) -> StoreError:
    """The error for a store without a prompt of this base."""
    return StoreError(
        f"no soft prompt of base {base.identity.short} in the store {store.folder}",
        why="There is nothing to rank, or to transfer from.",
        fix=f"anytune tune {base.ref or base.name} TASK --method prompt_tuning   (or anytune transfer add FOLDER)",
    )


def nothing_to_rank(store: Store, task: Task, own: int, problems: Sequence[str]) -> StoreError:
    """The error for a library of which nothing is left."""
    why = f"{own} are of '{task.name}' itself, and a task is no source for itself" if own else "None can be used"
    return StoreError(
        f"no prompt in the store {store.folder} can be a source for '{task.name}'",
        why=f"{why}{'; ' + '; '.join(problems[:3]) if problems else ''}.",
        fix="anytune tune BASE ANOTHER_TASK --method prompt_tuning",
    )


def _target_prompt(
    prompt: Entry | Source | None, train: int | None, own: Sequence[Candidate], task: Task, base: Base, store: Store,
    runtime: Runtime, tell: Reporter,
) -> Candidate | None:  # fmt: skip
    """The task's own prompt: the one named, the best one that is stored, or one tuned for a few steps."""
    if prompt is not None:
        [named] = given_prompts(prompt, base, store, "target")
        labels = named.entry.manifest.label_names
        if set(labels) != set(task.label_names):
            raise DataError(
                f"'{named.entry.reference}' answers {', '.join(labels[:4]) or 'with numbers or text'}; "
                f"the labels of '{task.name}' are {', '.join(task.label_names[:4]) or 'numbers or text'}",
                why="It was tuned on another task, whose embedding it would give.",
                fix="a prompt of this task, or --train 100 to tune one",
            )
        found, problems = candidates([named.entry], base, task, runtime=runtime)
        if not found or found[0].features is None:
            raise DataError(
                f"'{named.entry.reference}' cannot stand for '{task.name}': "
                f"{problems[0] if problems else found[0].missing}",
                why="The task's embedding is made with its own prompt.",
            )  # fmt: skip
        return found[0]
    usable = [one for one in own if one.features is not None]
    if usable:
        [best] = one_per_task([one.entry for one in usable])[:1]
        return next(one for one in usable if one.entry.id == best.id)
    if train is None:
        return None
    tell.say(f"tuning a prompt of {task.name} for {train} steps")
    [made] = tune(base, task, store=store, method="prompt_tuning", training={"steps": train}, reporter=tell)
    found, _ = candidates([made], base, task, runtime=runtime)
    return found[0]


def _ranking_measure(
    metric: str | None, scored: Mapping[str, Sequence[float | None]], measured: Sequence[Measured]
) -> str:
    if metric is not None:
        problem = next(one.problem for one in measured if one.name == metric)
        if all(value is None for value in scored[metric]):
            raise DataError(
                f"nothing can be ranked by {metric}: {problem or 'no prompt has a value'}",
                fix="another --metric   (anytune transfer rank without one lists what can be computed)",
            )
        return metric
    counts = {name: sum(value is not None for value in values) for name, values in scored.items()}
    most = max(counts.values())
    order = [*(name for name in PREFERRED if name in scored), *scored]
    return next((name for name in order if counts[name] == most), order[0])
