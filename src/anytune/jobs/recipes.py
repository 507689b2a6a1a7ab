"""Recipes: a job as a YAML file, checked before anything runs: ``anytune run RECIPE.yaml training.steps=50``.

The keys of a recipe are the arguments of the job's function, and ``job`` says which::

    job: tune
    base: sample:bert-tiny
    task: reviews.csv
    method: {name: lora, r: 8}
    training: {steps: 200, learning_rate: 1e-3}
    seeds: [0, 1, 2]            # or 3, which is that many, from 0

A recipe with ``jobs: [...]`` runs several in order; keys beside ``jobs`` (``store``, ``base``, ``seeds`` ...) are
defaults of every job that has them. A later job means by a name what an earlier one made; a delta of several seeds is
recycled seed by seed. Files are looked for beside the recipe; paths in an override, from the current
folder. The recipe inside a manifest runs too: name its ``anytune.json``, its folder, or the artefact.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from anytune.engine.progress import Reporter
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.errors import AnytuneError, SettingsError, nearest
from anytune.jobs.recipe_files import RecipeText, read_recipe, with_overrides
from anytune.jobs.recipe_paths import PLACES_TO_WRITE, beside
from anytune.jobs.recipe_schemas import (
    JOBS,
    AnytimeRecipe,
    CompareRecipe,
    EvaluateRecipe,
    JobRecipe,
    RecycleGridRecipe,
    RecycleRecipe,
    ReportRecipe,
    TransferRecipe,
    TuneRecipe,
    UpgradeRecipe,
)
from anytune.manifests import MANIFEST_NAME, read_manifest
from anytune.store import Entry
from anytune.store.names import slug


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: its jobs in order. ``several`` says whether it was written with ``jobs:``."""

    jobs: tuple[JobRecipe, ...]
    several: bool = False

    def resolved(self) -> list[dict[str, Any]]:
        """Every job as plain values, defaults and overrides put in: what will run."""
        return [{"job": job.model_dump()["job"], **job.arguments()} for job in self.jobs]


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a YAML file, the folder or ``anytune.json`` of an artefact, or a mapping.
        overrides: ``key=value``, with dots for inner keys: ``training.steps=50``, ``method.r=4``, ``jobs.0.seeds=3``.

    Raises:
        SettingsError: no YAML, a key that is unknown, twice or missing, or a value outside its limits; names the key,
            the near one and the line.
        MethodError: an unknown method.
    """
    text = _text_of(recipe)
    values = with_overrides(text.values, overrides)
    if "jobs" not in values:
        return Recipe((_job(values, text, ()),))
    jobs = values.pop("jobs")
    if not isinstance(jobs, list) or not jobs:
        raise SettingsError(
            f"{text.where('jobs')}: jobs is no list of jobs", fix="jobs: [{job: tune, ...}, {job: report}]"
        )
    shared = _shared(values, jobs, text)
    return Recipe(
        tuple(_job(_with_defaults(job, shared), text, ("jobs", place)) for place, job in enumerate(jobs)), True
    )


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    store: str | Path | None = None,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Any:
    """Run a recipe.

    Every job is checked before the first one starts. What is in the store already is not run again.

    Args:
        recipe: a YAML file, the folder or ``anytune.json`` of an artefact, or a mapping (a manifest's ``recipe``).
        overrides: ``key=value``; see :func:`load_recipe`.
        store: instead of the recipe's own.
        dry_run: make nothing; give a list of :class:`~anytune.jobs.forecast.Forecast`, one for each run.

    Returns:
        What the job's function returns; for a recipe with ``jobs``, the list of these.

    Raises:
        AnytuneError: a recipe or input that cannot be used.
    """
    loaded = load_recipe(recipe, overrides)
    if dry_run:
        return _forecast(loaded, store)
    results: list[Any] = []
    made: dict[str, list[Entry]] = {}
    for job in loaded.jobs:
        results.append(_run_job(job, made, store, reporter))
        for entry in results[-1] if isinstance(results[-1], list) else []:
            made.setdefault(entry.name, []).append(entry)
    return results if loaded.several else results[0]


def _forecast(recipe: Recipe, store: str | Path | None) -> list[Any]:
    """What the jobs would cost, in order."""
    from anytune.jobs.planning import Planner  # here: it imports every job

    planner = Planner()
    instead = {} if store is None else {"store": store}
    return [
        one for job in recipe.jobs for one in planner.forecast(job.model_dump()["job"], {**job.arguments(), **instead})
    ]


def _run_job(
    job: JobRecipe, made: Mapping[str, list[Entry]], store: str | Path | None, reporter: Reporter | None
) -> Any:
    """Run one checked job; names that earlier jobs of the recipe gave mean what those made."""
    module, name = job.home
    arguments = job.arguments()
    if store is not None:
        arguments["store"] = store
    if not isinstance(job, EvaluateRecipe | ReportRecipe):
        arguments["reporter"] = reporter
    function = getattr(importlib.import_module(module), name)
    for key in ("old", "new") if isinstance(job, UpgradeRecipe) else ("base", "old_base"):
        if isinstance(arguments.get(key), str) and slug(arguments[key]) in made:
            arguments[key] = made[slug(arguments[key])][-1]
    deltas = made.get(slug(arguments["delta"]), []) if "delta" in arguments else []
    if len(deltas) > 1 and isinstance(job, RecycleRecipe):  # of several seeds: each goes on under its own
        return [
            entry for one in deltas for entry in function(**{**arguments, "delta": one, "seeds": [one.manifest.seed]})
        ]
    if len(deltas) == 1:
        arguments["delta"] = deltas[0]
    start = made.get(slug(arguments["start_from"]), []) if arguments.get("start_from") else []
    if len(start) == 1:
        arguments["start_from"] = start[0]
    if isinstance(job, UpgradeRecipe) and "deltas" in arguments:
        arguments["deltas"] = [entry for one in arguments["deltas"] for entry in made.get(slug(one), [one])]
    for key in ("sources", "teachers") if isinstance(job, TuneRecipe) else ():
        if key in arguments:
            arguments[key] = [_made(one, made) for one in arguments[key]]
    return function(**arguments)


def _made(prompt: Any, made: Mapping[str, list[Entry]]) -> Any:
    """A source or teacher, with the one artefact put in that an earlier job of the recipe gave this name."""
    name = prompt.get("delta") if isinstance(prompt, Mapping) else prompt
    found = made.get(slug(name), []) if isinstance(name, str) else []
    if len(found) != 1:
        return prompt
    return {**prompt, "delta": found[0]} if isinstance(prompt, Mapping) else found[0]


# From text to values


def _text_of(recipe: str | Path | Mapping[str, Any]) -> RecipeText:
    if isinstance(recipe, Mapping):
        return RecipeText(dict(recipe))
    path = Path(recipe).expanduser()
    if path.is_dir() or path.name == MANIFEST_NAME:
        return _of_manifest(path if path.is_dir() else path.parent)
    text = read_recipe(path)
    return RecipeText(beside(text.values, path.parent), text.source, text.lines)


def _of_manifest(folder: Path) -> RecipeText:
    """The recipe in a manifest; it runs in the store that the artefact stands in, unless another is named."""
    manifest = read_manifest(folder)
    if not manifest.recipe:
        raise SettingsError(
            f"the manifest of '{manifest.name}' holds no recipe", why="It was not made by a job of anytune."
        )
    writes = [key for key in (*PLACES_TO_WRITE, "recycle") if key in manifest.recipe]
    if writes or "jobs" in manifest.recipe:
        raise SettingsError(
            f"the recipe of '{manifest.name}' names {', '.join(writes) or 'jobs'}",
            why="A recorded recipe makes one artefact again; where to write is said by who runs it.",
            fix="copy the recipe into a file of your own and read it first",
        )
    home = folder.resolve().parent
    place = {"store": str(home.parent)} if home.name in ("bases", "deltas") else {}
    return RecipeText({**place, **manifest.recipe}, f"the recipe of '{manifest.name}'")


# From values to jobs


def _shared(values: dict[str, Any], jobs: list[Any], text: RecipeText) -> dict[str, Any]:
    """Defaults beside ``jobs``; each must be a key of at least one of the jobs."""
    kinds = [JOBS[job["job"]] for job in jobs if isinstance(job, Mapping) and _is_job(job.get("job"))]
    known = {key for kind in kinds for key in kind.model_fields} - {"job"}
    for key in values:
        if key not in known:
            raise _unknown_key(key, sorted({*known, "jobs"}), text.where(key), "its jobs")
    return values


def _with_defaults(job: Any, shared: Mapping[str, Any]) -> Any:
    if not isinstance(job, Mapping) or not _is_job(job.get("job")):
        return job
    fields = JOBS[job["job"]].model_fields
    filled = {key: value for key, value in shared.items() if key in fields} | dict(job)
    if isinstance(shared.get("training"), Mapping) and isinstance(job.get("training"), Mapping):
        filled["training"] = {**shared["training"], **job["training"]}
    return filled


def _job(values: Any, text: RecipeText, place: tuple[str | int, ...]) -> JobRecipe:
    """One checked job."""
    if not isinstance(values, Mapping):
        raise SettingsError(
            f"{text.where(*place)}: a job is a mapping, not {values!r}", fix="{job: tune, base: ..., task: ...}"
        )
    name = values.get("job")
    if not _is_job(name):
        what = f"unknown job '{name}'" if name is not None else "no job is named"
        near = nearest(str(name), JOBS) if name is not None else None
        raise SettingsError(
            f"{_where(text, place, 'job')}: {what}", why=f"Jobs: {', '.join(JOBS)}.", fix=f"job: {near or 'tune'}"
        )
    kind = JOBS[name]
    for key in values:
        if key not in kind.model_fields:
            raise _unknown_key(key, sorted(kind.model_fields), _where(text, place, key), f"job '{name}'")
    _check_training(values.get("training"), text, place)
    try:
        job = kind.model_validate(dict(values))
    except ValidationError as problem:
        raise _invalid(problem, kind, name, text, place) from None
    except SettingsError as problem:  # of parse_seeds
        raise _at(problem, _where(text, place, "seeds")) from None
    _check_methods(job, values, text, place)
    return job


def _is_job(name: Any) -> TypeGuard[str]:
    return isinstance(name, str) and name in JOBS


def _check_training(given: Any, text: RecipeText, place: tuple[str | int, ...]) -> None:
    if not isinstance(given, Mapping):
        return  # None, or refused by the schema
    for key in given:
        if key not in TrainingSettings.model_fields:
            where = _where(text, place, "training", key)
            raise _unknown_key(key, list(TrainingSettings.model_fields), where, "training")
        try:
            training_settings({key: given[key]})
        except SettingsError as problem:
            raise _at(problem, _where(text, place, "training", key)) from None


def _check_methods(job: JobRecipe, values: Mapping[str, Any], text: RecipeText, place: tuple[str | int, ...]) -> None:
    from anytune.methods import registry  # here: it imports torch, and a wrong key should be told at once

    if isinstance(job, CompareRecipe):
        from anytune.jobs.arms import check_arms

        for arm in job.arms.values():
            if isinstance(arm, Mapping):
                _check_training(arm.get("training"), text, (*place, "arms"))
        try:
            check_arms(job.arms, job.control)
        except AnytuneError as problem:
            raise _at(problem, _where(text, place, "arms")) from None
    if isinstance(job, AnytimeRecipe):
        _check_anytime(job, text, place)
    if isinstance(job, TransferRecipe):
        _check_transfer(job, text, place)
    if isinstance(job, RecycleGridRecipe):
        _check_recycle_grid(job, text, place)
    for key, room in job.rooms.items():
        if values.get(key) is None:
            continue
        try:
            registry.parse(getattr(job, key), room)
        except AnytuneError as problem:
            raise _at(problem, _where(text, place, key)) from None


def _check_anytime(job: AnytimeRecipe, text: RecipeText, place: tuple[str | int, ...]) -> None:
    from anytune.evaluate.anytime import check_metrics
    from anytune.jobs.anytime_design import check_anytime_arms, check_tuning

    for arm in job.arms.values():
        if isinstance(arm, Mapping):
            _check_training(arm.get("training"), text, (*place, "arms"))
    checks: list[tuple[str, Any]] = [
        ("arms", lambda: check_anytime_arms(job.arms, job.control)),
        ("tuning", lambda: check_tuning(job.tuning)),
        ("metrics", lambda: check_metrics(job.metrics)),
    ]
    for key, check in checks:
        try:
            check()
        except AnytuneError as problem:
            raise _at(problem, _where(text, place, key)) from None


def _check_transfer(job: TransferRecipe, text: RecipeText, place: tuple[str | int, ...]) -> None:
    from anytune.jobs.ranking import check_measures
    from anytune.jobs.transfer_design import check_prompt, check_rates, check_transfer_arms

    _check_training(job.source_training, text, (*place, "source_training"))
    for arm in job.arms.values():
        if isinstance(arm, Mapping):
            _check_training(arm.get("training"), text, (*place, "arms"))
    checks: list[tuple[str, Any]] = [
        ("arms", lambda: check_transfer_arms(job.arms, job.control)),
        ("prompt", lambda: check_prompt(job.prompt)),
        ("rates", lambda: check_rates(job.rates)),
        ("measures", lambda: check_measures(job.measures, job.choose_by)),
    ]
    for key, check in checks:
        try:
            check()
        except AnytuneError as problem:
            raise _at(problem, _where(text, place, key)) from None


def _check_recycle_grid(job: RecycleGridRecipe, text: RecipeText, place: tuple[str | int, ...]) -> None:
    from anytune.jobs.recycle_design import check_recycle_arms, check_sizes

    _check_training(job.pretraining, text, (*place, "pretraining"))
    for key, found in (("arms", job.arms), ("forms", job.forms)):
        for inner in (one for one in found.values() if isinstance(one, Mapping)):
            for part in ("training", "old_training"):
                _check_training(inner.get(part), text, (*place, key))
    checks: list[tuple[str, Any]] = [
        ("arms", lambda: check_recycle_arms(job.arms, job.control)),
        ("old", lambda: check_sizes(job.old or ["full"], "old")),
        ("new", lambda: check_sizes(job.new or ["full"], "new")),
    ]
    for key, check in checks:
        try:
            check()
        except AnytuneError as problem:
            raise _at(problem, _where(text, place, key)) from None


def _where(text: RecipeText, place: tuple[str | int, ...], *keys: str | int) -> str:
    """Where a key stands: in its job, or beside ``jobs``; else the nearest thing above it that has a line."""
    ways = [(*place, *keys), keys] if place else [keys]
    ways += [way[:end] for way in ways for end in range(len(way) - 1, 0, -1)]
    found = next((way for way in ways if way in text.lines), ())
    return text.where(*found)


def _at(problem: AnytuneError, where: str) -> AnytuneError:
    return type(problem)(f"{where}: {problem.what}", why=problem.why, fix=problem.fix)


def _unknown_key(key: Any, known: list[str], where: str, owner: str) -> SettingsError:
    near = nearest(str(key), known)
    return SettingsError(
        f"{where}: unknown key '{key}'", why=f"Keys of {owner}: {', '.join(known)}.", fix=f"{near}:" if near else ""
    )


def _invalid(
    problem: ValidationError, kind: type[JobRecipe], name: str, text: RecipeText, place: tuple[str | int, ...]
) -> SettingsError:
    first = problem.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return SettingsError(f"{_where(text, place)}: job '{name}' needs '{key}'", fix=f"{key}: ...")
    allowed = "" if "literal" not in first["type"] else f"One of {first['ctx']['expected']}."
    return SettingsError(
        f"{_where(text, place, key)}: {key} = {first['input']!r}: {first['msg'].lower()}", why=allowed
    )
