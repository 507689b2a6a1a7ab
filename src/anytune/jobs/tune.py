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
from anytune.engine.settings import TrainingSettings, total_steps, training_settings
from anytune.engine.tracking import tracking
from anytune.errors import SettingsError
from anytune.jobs.extra_scores import LabelMap, Sources, extra_scores
from anytune.jobs.failures import are_kept, drop_failures, failures_kept, refuse_all_failed
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import fitting, open_base, open_store, open_task
from anytune.jobs.resuming import Resume, check_resume, insist
from anytune.jobs.runs import Runs, floor_of
from anytune.jobs.scoring import EncodedTask
from anytune.jobs.subsets import SubsetSeed, subsets
from anytune.jobs.tuning import Outdated, TuningPlan, forecast_all, refuse_untrained, suggested_rate, tune_all
from anytune.jobs.workers import chosen_workers
from anytune.manifests import MethodRecord
from anytune.methods import registry
from anytune.methods.protocol import Method
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
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    start_from: Entry | Source | None = None,
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
        start_from: a stored delta of the same base and labels (a full difference, or an adapter and its method): a
            new run from these weights. Weights of another base are for :func:`anytune.recycle`.
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
    opened = open_base(base, place)
    data = open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
    parts = subsets(data, train_size, train_sizes, per_class, subset_seed)
    given = training_settings(training)
    fitted = fitting(given, opened)
    extra = extra_scores(
        data, opened, score_on=score_on, probe_on=probe_on, label_map=label_map, max_length=fitted.max_length,
        batch_size=fitted.evaluate_batch_size,
    )  # fmt: skip
    chosen = check_seeds(seeds)
    several = len(chosen) * len(parts.sizes) > 1 or against is not None or are_kept()

    def planned(method: Any, keep: str, name: str | None, tags: Mapping[str, str]) -> list[TuningPlan]:
        """The runs of one method, by size and seed."""
        methods, settings = check_methods(method, opened), fitted
        start: Outdated | None = None
        inherited: list[MethodRecord] = []
        if start_from is not None:
            from anytune.jobs.starting import methods_after, starting_point  # stands on recycle, which stands on this

            start = starting_point(start_from, opened, data, place)
            _, inherited = methods_after(start, methods)
            if inherited:  # the method that suggests a rate is not run again
                settings = settings.model_copy(update={"learning_rate": suggested_rate(settings, methods)})
        plans = []
        for size in parts.sizes:
            for seed in chosen:
                fresh = registry.parse(method, "tune")
                drawn = None if parts.task is parts.of(size, seed) else parts.seed_of(seed) or None
                plans.append(TuningPlan(
                    job="tune", base=opened, task=parts.of(size, seed), settings=settings, seed=seed, keep=keep,
                    start=start, tracking=followed, extra=extra, keeps_failure=several,
                    methods=fresh if start is None else methods_after(start, fresh)[0], inherited=inherited,
                    name=name or f"{data.name}-{fresh[0].name}-{opened.name}", tags=dict(tags),
                    recipe=recipe_of("tune", base=opened, task=data, method=method, training=settings, seeds=[seed],
                                     train_size=size, per_class=per_class, subset_seed=drawn, score_on=score_on,
                                     label_map=label_map, probe_on=probe_on, keep=keep,
                                     start_from=start.entry.reference if start else None, **columns),
                ))  # fmt: skip
        return plans

    if keep not in ("weights", "scores"):
        raise SettingsError(f"keep = '{keep}'", fix="keep=weights or keep=scores")
    plans = planned(method, keep, name, tags or {"arm": "fresh"})
    controls: list[TuningPlan] = []
    if against is not None:
        controls = planned(against, "scores", None, {**(tags or {}), "arm": "control" if tags else "fresh"})
        check_control(plans, controls)

    def encoded(part: Task) -> EncodedTask:
        return EncodedTask.of(part, opened, fitted.max_length)

    if dry_run:
        forecasts: list[Any] = forecast_all([*plans, *controls], place, encoded=encoded)
        return Runs(forecasts)
    if resume == "must":
        insist(place, "delta", [plan.identity(plan.runtime()) for plan in (*plans, *controls)])
    if resume == "never":
        drop_failures(place, [plan.identity(plan.runtime()).key for plan in (*plans, *controls)])
    call = {
        "base": base, "task": task, "store": str(place.folder), "training": training, "per_class": per_class,
        "subset_seed": subset_seed, "score_on": score_on, "label_map": label_map, "probe_on": probe_on,
        "start_from": start_from, "resume": "auto" if resume == "must" else resume, "log_with": log_with,
        "log_dir": log_dir, **columns,
    }  # fmt: skip
    calls = [{**call, "method": method, "keep": keep, "name": name, "tags": tags} for _ in plans]
    calls += [{**call, "method": against, "keep": "scores", "tags": plan.tags} for plan in controls]
    if share_out([*plans, *controls], calls, place, workers=workers, fan_out=fan_out, reporter=reporter or Silent()):
        resume = "auto"  # all are finished now
    made = tune_all(plans, place, encoded=encoded, reporter=reporter, resume=resume)
    refuse_all_failed(made)
    if controls:
        beside = tune_all(controls, place, encoded=encoded, reporter=reporter, resume=resume)
    else:
        looked = several and start_from is None
        beside = found_beside(plans, planned(PLAIN, "scores", None, {}), place) if looked else []
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


def check_methods(method: Any, base: Base) -> list[Method]:
    """The tune methods a command names, if they can train on ``base``.

    Raises:
        AnytuneError: unknown, none, not for this kind of model, or one that does not train.
    """
    methods = registry.parse(method, "tune", base.anatomy.model_type)
    if not methods:
        raise SettingsError("no method is given", why="An empty list trains nothing.", fix="method=full")
    refuse_untrained(methods, "tune")
    return methods


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


def _unit_name(plan: TuningPlan, plans: Sequence[TuningPlan]) -> str:
    """What progress and errors call a run: its seed, and where they differ its method and size."""
    names = ["+".join(method.name for method in one.methods) for one in (plan, *plans)]
    parts = [names[0]] if len(set(names)) > 1 else []
    if len({one.recipe.get("train_size") for one in plans}) > 1:
        parts.append(f"{plan.recipe['train_size']} examples")
    return ", ".join([*parts, f"seed {plan.seed}"])


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds as given, if they are distinct whole numbers from 0 to 2**32 - 1.

    Raises:
        SettingsError: they are not.
    """
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise SettingsError(
                f"seed = {seed!r}", why="A seed is a whole number from 0 to 4294967295.", fix="seeds=[0]"
            )
    if len(set(seeds)) != len(seeds) or not seeds:
        raise SettingsError(
            f"seeds = {list(seeds)}", why="Seeds must be distinct, and at least one.", fix="seeds=[0,1,2]"
        )
    return list(seeds)


def recipe_of(job: str, *, base: Base, task: Task | None = None, **settings: Any) -> dict[str, Any]:
    """What ``anytune run`` needs to make an artefact again; local files appear by name, never by absolute path."""
    recipe: dict[str, Any] = {"job": job, "base": base.ref or base.name}
    if task is not None:
        recipe["task"] = task.ref or task.name
    for key, value in settings.items():
        if value is None:
            continue
        if isinstance(value, TrainingSettings):
            value = value.model_dump(exclude_unset=True)
        recipe[key] = _portable(value)
    return recipe


def _portable(value: Any) -> Any:
    if hasattr(value, "ref") and hasattr(value, "name"):  # a domain or a task
        plain = value.ref in (None, value.name, f"sample:{value.name}")
        return (value.ref or value.name) if plain else {"source": value.ref, "name": value.name}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if isinstance(value, Mapping):
        return {str(key): _portable(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_portable(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
