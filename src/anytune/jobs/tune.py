"""Tune a task on a base: ``anytune tune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.fanout import Unit, check_fan_out, run_units
from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings, total_steps
from anytune.engine.tracking import tracking
from anytune.errors import SettingsError
from anytune.jobs.command import Command
from anytune.jobs.extra_scores import LabelMap, Sources
from anytune.jobs.failures import are_kept, drop_failures, failures_kept, refuse_all_failed
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.prompt_sources import References
from anytune.jobs.resuming import Resume, check_resume, insist
from anytune.jobs.run_all import forecast_all, tune_all
from anytune.jobs.runs import Runs, floor_of
from anytune.jobs.subsets import SubsetSeed
from anytune.jobs.tuning_plan import TuningPlan
from anytune.jobs.workers import chosen_workers
from anytune.methods import registry
from anytune.models.base import Base
from anytune.store import Entry, Store

Source = str | Path
#: What plain training is called; the control where none is named.
PLAIN = "full"


@unwritten
def tune(
    base: Base | Entry | Source,
    task: Task | Source | Mapping[str, Any],
    *,
    store: Store | Source | None = None,
    method: str | Sequence[Any] | Mapping[str, Any] = "full",
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    train_size: int | None = None,
    train_sizes: Sequence[int] | None = None,
    per_class: int | None = None,
    subset_seed: SubsetSeed | None = None,
    score_on: Sources | None = None,
    label_map: LabelMap | None = None,
    probe_on: Sources | None = None,
    against: str | Sequence[Any] | Mapping[str, Any] | None = None,
    keep: str = "weights",
    keep_sample: bool = True,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    start_from: Entry | Source | None = None,
    sources: References | None = None,
    teachers: References | None = None,
    resume: Resume = "auto",
    log_with: str | Sequence[str] | None = None,
    log_dir: str | Path | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    fan_out: str = "processes",
    reporter: Reporter | None = None,
    **columns: Any,
) -> Runs:
    """Tune ``task`` on ``base`` once for each seed (and training size) and store the deltas.

    A run that is already in the store is given back without training; one that was interrupted goes on. If one of
    several runs diverges, the others go on; it stands in the store, and in every summary, as a failed run.

    Args:
        base: ``sample:NAME``, a folder, the name of a base in the store, or a hub id.
        task: a CSV / JSONL / Parquet file, a folder of splits, ``sample:NAME``, a datasets id, or a Task.
        method: name(s) of tune methods, with settings as ``{"name": "lora", "r": 8}``.
        training: see :class:`~anytune.engine.settings.TrainingSettings`.
        train_size: use so many training examples (stratified); validation is cut to no more than that.
        train_sizes: several such sizes; every seed is run at each of them.
        per_class: use so many training examples of each class.
        subset_seed: what draws the rows of a size: a number, the same rows for all runs (default 0); "run", each run
            draws its own by its seed.
        score_on: other tasks of the same label meaning; each run is scored on their test splits as well.
        label_map: for a task of ``score_on`` by name: its label -> ours, or None to leave its rows out.
        probe_on: tasks to fit a linear probe for on the frozen tuned body, and on the untouched base beside it.
        against: a method that is run beside this one as control, with the same seeds, sizes and training settings; of
            its runs scores alone are stored.
        keep: "weights", or "scores" to store the numbers alone.
        keep_sample: keep some validation rows (texts and labels) beside the weights, by which an upgrade of the base
            scores them; they are neither exported nor pushed.
        start_from: a stored delta of the same base and labels (a full difference, or an adapter and its method): a
            new run from these weights. Weights of another base are for :func:`anytune.recycle`.
        sources: stored soft prompts of this base, tuned on other tasks, best first, for a method that starts from them
            (``prompt_transfer``); ``{"delta": ..., "similarity": 0.7}`` also says how near its task is.
        teachers: stored soft prompts of this base, tuned on this task, for a method that learns from them (``panda``).
        resume: "auto" goes on with a run that was interrupted; "must" is an error where none of the seeds was begun
            before, and names what differs; "never" throws checkpoints away and begins at step 0.
        log_with: experiment trackers that follow the runs: "tensorboard", "trackio", "wandb" ..., or a list.
        log_dir: folder of the files that trackers write (default: ``anytune-logs``).
        dry_run: make nothing; the list holds a :class:`~anytune.jobs.forecast.Forecast` for each run instead.
        workers: spread the runs over so many processes; 1 makes them one after the other in this one. By default the
            rule of :mod:`anytune.jobs.workers` decides.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        columns: ``text``, ``label``, ``metric``, ``kind``, ``validation``, ``test`` ... of :func:`load_task`.

    Returns:
        One store entry per size and seed, in this order; see :class:`~anytune.jobs.runs.Runs` for their summary.

    Raises:
        DivergedError: every run diverged.
        AnytuneError: bad input; nothing is stored then.
    """
    resume = check_resume(resume)
    followed = tracking(log_with, log_dir)
    place = open_store(store)
    sizes_asked = len(train_sizes) if train_sizes is not None else 1
    several = len(list(seeds)) * sizes_asked > 1 or against is not None or are_kept()
    command = Command.of(
        place, open_base(base, place), task, training=training, seeds=seeds, train_size=train_size,
        train_sizes=train_sizes, per_class=per_class, subset_seed=subset_seed, score_on=score_on,
        label_map=label_map, probe_on=probe_on, columns=columns, start_from=start_from, sources=sources,
        teachers=teachers, tracking=followed, keeps_failure=several, keep_sample=keep_sample,
    )  # fmt: skip
    if keep not in ("weights", "scores"):
        raise SettingsError(f"keep = '{keep}'", fix="keep=weights or keep=scores")
    plans = command.plans(method, keep, name, tags or {"arm": "fresh"})
    controls: list[TuningPlan] = []
    if against is not None:
        controls = command.plans(
            against, "scores", None, {**(tags or {}), "arm": "control" if tags else "fresh"}, control=True
        )
        check_control(plans, controls)
    if dry_run:
        forecasts: list[Any] = forecast_all([*plans, *controls], place, encoded=command.encoded)
        return Runs(forecasts)
    if resume == "must":
        insist(place, "delta", [plan.identity(plan.runtime()) for plan in (*plans, *controls)])
    if resume == "never":
        drop_failures(place, [plan.identity(plan.runtime()).key for plan in (*plans, *controls)])
    call = {
        "base": base, "task": task, "store": str(place.folder), "training": training, "per_class": per_class,
        "subset_seed": subset_seed, "score_on": score_on, "label_map": label_map, "probe_on": probe_on,
        "start_from": start_from, "keep_sample": keep_sample, "resume": "auto" if resume == "must" else resume,
        "log_with": log_with, "log_dir": log_dir, **columns,
    }  # fmt: skip
    calls = [{**call, **_prompts(plan), "method": method, "keep": keep, "name": name, "tags": tags} for plan in plans]
    calls += [{**call, **_prompts(plan), "method": against, "keep": "scores", "tags": plan.tags} for plan in controls]
    if share_out([*plans, *controls], calls, place, workers=workers, fan_out=fan_out, reporter=reporter or Silent()):
        resume = "auto"  # all are finished now
    made = tune_all(plans, place, encoded=command.encoded, reporter=reporter, resume=resume)
    refuse_all_failed(made)
    if controls:
        beside = tune_all(controls, place, encoded=command.encoded, reporter=reporter, resume=resume)
    else:
        looked = several and start_from is None
        beside = found_beside(plans, command.plans(PLAIN, "scores", None, {}, control=True), place) if looked else []
    return Runs(made, beside, {plan.task.content: floor_of(plan.task) for plan in plans} if several else {})


def found_beside(plans: Sequence[TuningPlan], plain: Sequence[TuningPlan], store: Store) -> list[Entry]:
    """Runs of plain training with the same base, data, settings and seeds that the store holds already.

    Runs with weights and runs of scores alone will do; the scores beside test (``score_on``) need not be the same.
    """
    if [registry.record(method) for method in plans[0].methods] == [registry.record(m) for m in plain[0].methods]:
        return []
    there = {entry.manifest.run: entry for entry in store.find("delta")}
    found = []
    for plan in plain:
        ways = [
            replace(plan, keep=keep, extra=extra)
            for keep in ("weights", "scores")
            for extra in dict.fromkeys((plan.extra, None))
        ]
        keys = [way.identity(way.runtime()).key for way in ways]
        found += [there[key] for key in keys if key in there][:1]
    return found


def check_control(plans: Sequence[TuningPlan], controls: Sequence[TuningPlan]) -> None:
    """Refuse a control that is the method itself.

    Raises:
        SettingsError: both have the same name and settings.
    """
    one, other = ([registry.record(method) for method in side[0].methods] for side in (plans, controls))
    if one == other:
        names = "+".join(record.name.rpartition("/")[2] for record in one)
        raise SettingsError(
            f"against {names}, which is the method itself", why="Every difference would be zero.",
            fix="another --against, or none",
        )  # fmt: skip


def share_out(
    plans: Sequence[TuningPlan], calls: Sequence[Mapping[str, Any]], store: Store, *, workers: int | None,
    fan_out: str, reporter: Reporter,
) -> bool:  # fmt: skip
    """Have the runs of one command that are not in the store yet made by workers, each by a call of :func:`tune`.

    Args:
        calls: for each plan the arguments of its command, all but seeds and size.
        workers: how many; None for the rule of :mod:`anytune.jobs.workers`.

    Returns:
        False if they are left to this process.

    Raises:
        SettingsError: the base is an object, which cannot be sent to another process.
        AnytuneError: a run failed; those that were finished are kept.
    """
    if (workers is not None and workers < 2) or len(plans) < 2:
        return False
    if workers is not None and isinstance(calls[0]["base"], Base):
        raise SettingsError(
            "workers cannot be sent an open base", why="Other processes open it again.", fix="base=its folder or name"
        )
    if workers is not None:
        check_fan_out(fan_out)
    there = {entry.manifest.run for entry in store.find("delta")}
    missing = [
        (plan, call) for plan, call in zip(plans, calls, strict=True) if plan.identity(plan.runtime()).key not in there
    ]
    count = workers if workers is not None else chosen_workers([plan for plan, _ in missing], calls[0])
    if count < 2 or not missing:
        return False
    units = []
    for plan, call in missing:
        own = {"seeds": plan.recipe["seeds"], "train_size": plan.recipe.get("train_size")}
        steps = total_steps(plan.settings, math.ceil(len(plan.task.train) / plan.settings.batch_size))
        units.append(Unit(_unit_name(plan, plans), one_of_several, {**call, **own}, steps))
    run_units(units, title=f"tune {plans[0].task.name}", reporter=reporter, workers=count, fan_out=fan_out)
    return True


def one_of_several(**call: Any) -> None:
    """A run of a command of several, in a worker: that it diverged is stored and ends nothing."""
    with failures_kept():
        tune(**call, workers=1)


def _prompts(plan: TuningPlan) -> dict[str, Any]:
    """The stored prompts of a run as arguments of :func:`tune`; none where there are none."""
    given = {"sources": plan.sources, "teachers": plan.teachers}
    return {role: [one.argument for one in prompts] for role, prompts in given.items() if prompts}


def _unit_name(plan: TuningPlan, plans: Sequence[TuningPlan]) -> str:
    """What progress and errors call a run: its seed, and where they differ its method and size."""
    names = ["+".join(method.name for method in one.methods) for one in (plan, *plans)]
    parts = [names[0]] if len(set(names)) > 1 else []
    if len({one.recipe.get("train_size") for one in plans}) > 1:
        parts.append(f"{plan.recipe['train_size']} examples")
    return ", ".join([*parts, f"seed {plan.seed}"])
