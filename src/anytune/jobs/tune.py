"""Tune a task on a base: ``anytune tune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.fanout import Unit, run_units
from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings, total_steps, training_settings
from anytune.engine.tracking import tracking
from anytune.errors import SettingsError
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import fitting, open_base, open_store, open_task
from anytune.jobs.resuming import Resume, check_resume, insist
from anytune.jobs.scoring import EncodedTask
from anytune.jobs.tuning import Outdated, TuningPlan, forecast_all, refuse_untrained, suggested_rate, tune_all
from anytune.manifests import MethodRecord
from anytune.methods import registry
from anytune.models.base import Base
from anytune.store import Entry, Store

Source = str | Path


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
    per_class: int | None = None,
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
) -> list[Entry]:
    """Tune ``task`` on ``base`` once for each seed and store the deltas.

    A run that is already in the store is given back without training; one that was interrupted goes on.

    Args:
        base: ``sample:NAME``, a folder, the name of a base in the store, or a hub id.
        task: a CSV / JSONL / Parquet file, a folder of splits, ``sample:NAME``, a datasets id, or a Task.
        method: name(s) of tune methods, with settings as ``{"name": "lora", "r": 8}``.
        training: see :class:`~anytune.engine.settings.TrainingSettings`.
        train_size: use so many training examples (stratified); validation is cut to no more than that.
        per_class: use so many training examples of each class.
        keep: "weights", or "scores" to store the numbers alone.
        start_from: a stored delta of the same base and labels (a full difference, or an adapter and its method): a
            new run from these weights. Weights of another base are for :func:`anytune.recycle`.
        resume: "auto" goes on with a run that was interrupted; "must" is an error where none of the seeds was begun
            before, and names what differs; "never" throws checkpoints away and begins at step 0.
        log_with: experiment trackers that follow the runs: "tensorboard", "trackio", "wandb" ..., or a list.
        log_dir: folder of the files that trackers write (default: ``anytune-logs``).
        dry_run: make nothing; the list holds a :class:`~anytune.jobs.forecast.Forecast` for each run instead.
        workers: spread the seeds over so many processes; by default one after the other in this one.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        columns: ``text``, ``label``, ``metric``, ``kind``, ``validation``, ``test`` ... of :func:`load_task`.

    Returns:
        One store entry per seed, in the order of the seeds.

    Raises:
        AnytuneError: bad input; nothing is stored then.
    """
    resume = check_resume(resume)
    followed = tracking(log_with, log_dir)
    place = open_store(store)
    opened = open_base(base, place)
    data = open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
    if train_size is not None or per_class is not None:
        data = data.subset(train_size=train_size, per_class=per_class, seed=0)
    if keep not in ("weights", "scores"):
        raise SettingsError(f"keep = '{keep}'", fix="keep=weights or keep=scores")
    methods = registry.parse(method, "tune", opened.anatomy.model_type)
    if not methods:
        raise SettingsError("no method is given", why="An empty list trains nothing.", fix="method=full")
    refuse_untrained(methods, "tune")
    settings = fitting(training_settings(training), opened)
    start: Outdated | None = None
    inherited: list[MethodRecord] = []
    if start_from is not None:
        from anytune.jobs.starting import methods_after, starting_point  # stands on recycle, which stands on this file

        start = starting_point(start_from, opened, data, place)
        _, inherited = methods_after(start, methods)
        if inherited:  # the method that suggests a rate is not run again
            settings = settings.model_copy(update={"learning_rate": suggested_rate(settings, methods)})
    plans = []
    for seed in check_seeds(seeds):
        fresh = registry.parse(method, "tune")
        plans.append(TuningPlan(
            job="tune", base=opened, task=data, settings=settings, seed=seed, keep=keep, start=start,
            tracking=followed,
            methods=fresh if start is None else methods_after(start, fresh)[0], inherited=inherited,
            name=name or f"{data.name}-{fresh[0].name}-{opened.name}", tags=dict(tags or {"arm": "fresh"}),
            recipe=recipe_of("tune", base=opened, task=data, method=method, training=settings, seeds=[seed],
                             train_size=train_size, per_class=per_class, keep=keep,
                             start_from=start.entry.reference if start else None, **columns),
        ))  # fmt: skip
    encoded = partial(EncodedTask.of, data, opened, settings.max_length)
    if dry_run:
        forecasts: list[Any] = forecast_all(plans, place, encoded=encoded)
        return forecasts
    if workers is not None and workers > 1 and len(plans) > 1:
        call = {
            "base": base, "task": task, "store": str(place.folder), "method": method, "training": training,
            "train_size": train_size, "per_class": per_class, "keep": keep, "name": name, "tags": tags,
            "start_from": start_from, "resume": resume, "log_with": log_with, "log_dir": log_dir, **columns,
        }  # fmt: skip
        steps = total_steps(settings, math.ceil(len(data.train) / settings.batch_size))
        share_out(plans, place, call, steps, workers=workers, fan_out=fan_out, reporter=reporter or Silent())
        resume = "auto"  # all are finished now
    return tune_all(plans, place, encoded=encoded, reporter=reporter, resume=resume)


def share_out(
    plans: Sequence[TuningPlan], store: Store, call: dict[str, Any], steps: int, *, workers: int, fan_out: str,
    reporter: Reporter,
) -> None:  # fmt: skip
    """Have the runs of one command that are not in the store yet made by workers, each by a call of :func:`tune`.

    Args:
        call: the arguments of the command, all but the seeds.
        steps: of each run.

    Raises:
        SettingsError: the base is an object, which cannot be sent to another process.
        AnytuneError: a run failed; those that were finished are kept.
    """
    if isinstance(call["base"], Base):
        raise SettingsError(
            "workers cannot be sent an open base", why="Other processes open it again.", fix="base=its folder or name"
        )
    missing = [plan.seed for plan in plans if not store.find("delta", run=plan.identity(plan.runtime()).key)]
    if call["resume"] == "must":
        insist(store, "delta", [plan.identity(plan.runtime()) for plan in plans])
        call = {**call, "resume": "auto"}
    units = [Unit(f"seed {seed}", tune, {**call, "seeds": [seed]}, steps) for seed in missing]
    run_units(units, title=f"tune {plans[0].task.name}", reporter=reporter, workers=workers, fan_out=fan_out)


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
