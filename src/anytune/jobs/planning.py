"""Forecasts of several jobs in order, where later ones need what earlier ones would make.

A base or delta that is still to be made is stood in for by what it would be made from: it has the same shape, so a
step on it costs the same. Such a forecast says so, and is never taken for a run that is in the store.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from anytune.jobs.anytime import anytime_matrix
from anytune.jobs.arms import compare_arms
from anytune.jobs.forecast import PENDING, Forecast, standing_in
from anytune.jobs.opening import open_base, open_store, open_task
from anytune.jobs.pretrain import pretrain
from anytune.jobs.recycle import recycle
from anytune.jobs.recycle_grid import recycle_grid
from anytune.jobs.transfer_grid import transfer_grid
from anytune.jobs.tune import tune
from anytune.jobs.upgrade import upgrade
from anytune.jobs.use_forecasts import forecast_evaluation
from anytune.manifests import caches_unwritten, read_manifest
from anytune.methods import registry
from anytune.models.base import Base
from anytune.store import Entry
from anytune.store.names import slug


class Planner:
    """Forecasts jobs one after the other and remembers what each would make.

    Attributes:
        bases: name -> stand-in, for bases that are still to be made.
        deltas: name -> arguments of the ``tune`` that would make it.
        stored: name -> what the jobs so far would find in the store.
    """

    def __init__(self) -> None:
        self.bases: dict[str, Base] = {}
        self.deltas: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, list[Entry]] = {}

    def forecast(self, job: str, arguments: Mapping[str, Any]) -> list[Forecast]:
        """The forecasts of one job; ``arguments`` as its function takes them."""
        given = {key: value for key, value in arguments.items() if key != "reporter"}
        with caches_unwritten():
            made: list[Forecast] = getattr(self, f"_{job.replace('-', '_')}")(given)
        for one in made:
            if one.state == "stored":
                self.stored.setdefault(slug(one.name), []).append(Entry(one.place, read_manifest(one.place)))
        return made

    def stand_in(self, name: str, base: Base) -> None:
        """From here on ``name`` means a base like ``base``."""
        renamed = base.identity.model_copy(update={"name": name})
        self.bases[slug(name)] = replace(base, identity=renamed)

    def _base(self, given: Any) -> tuple[Any, bool]:
        """A base argument with what it means put in, and whether that is a stand-in."""
        key = slug(given) if isinstance(given, str) else ""
        if key in self.bases:
            return self.bases[key], True
        return (self.stored[key][-1] if key in self.stored else given), False

    def _pretrain(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        with standing_in() if pending else nullcontext():
            made: list[Any] = pretrain(**{**given, "base": base}, dry_run=True)
        opened = open_base(base, open_store(given.get("store")))
        for one in made:
            if one.state != "stored":
                self.stand_in(one.name, opened)
        return made

    def _tune(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        arguments = {**given, "base": base}
        start = arguments.get("start_from")
        if isinstance(start, str) and slug(start) in self.deltas:  # starting from weights costs no step
            del arguments["start_from"]
            pending = True
        elif isinstance(start, str) and len(self.stored.get(slug(start), [])) == 1:
            [arguments["start_from"]] = self.stored[slug(start)]
        lacking = self._prompts(arguments)
        called = arguments.get("method", "full")
        if lacking:
            pending, arguments["method"] = True, _without_prompts(called)
        with standing_in() if pending else nullcontext():
            made: list[Any] = tune(**arguments, dry_run=True)
        if lacking and not arguments.get("name"):
            stand_in, own = (
                slug(registry.parse(one, registry.TUNING)[0].name) for one in (arguments["method"], called)
            )
            made = [replace(one, name=one.name.replace(stand_in, own, 1)) for one in made]
        for one in made:
            if one.state != "stored":
                self.deltas[slug(one.name)] = arguments
        return made

    def _prompts(self, arguments: dict[str, Any]) -> bool:
        """Put in the sources and teachers that are stored; take all of them out if one is still to be made."""
        lacking = False
        for role in ("sources", "teachers"):
            found = []
            for one in arguments.get(role) or ():
                name = slug(str(one["delta"] if isinstance(one, Mapping) else one))
                stored = self.stored.get(name, [])
                lacking = lacking or name in self.deltas
                entry = stored[0] if len(stored) == 1 else None
                found.append(one if entry is None else {**one, "delta": entry} if isinstance(one, Mapping) else entry)
            if role in arguments:
                arguments[role] = found
        if lacking:
            arguments.update({role: None for role in ("sources", "teachers") if role in arguments})
        return lacking

    def _recycle(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        name = slug(given["delta"]) if isinstance(given["delta"], str) else ""
        if name in self.deltas:
            return self._recycle_pending(self.deltas[name], given, base)
        made: list[Any] = []
        found = self.stored.get(name, [given["delta"]])
        with standing_in() if pending else nullcontext():
            for delta in found:  # of several seeds: each goes on under its own
                own = {"seeds": [delta.manifest.seed]} if len(found) > 1 else {}
                made += recycle(**{**given, **own, "delta": delta, "base": base}, dry_run=True)
        return made

    def _recycle_pending(self, tuned: dict[str, Any], given: dict[str, Any], base: Any) -> list[Forecast]:
        """A delta that is still to be made, carried over: like tuning it on the new base."""
        [method] = registry.parse(given.get("method", "initialize"), "recycle")
        columns = set(tuned) - set(inspect.signature(tune).parameters)
        reading = {key: tuned[key] for key in columns}
        reading |= {key: value for key, value in given.items() if key not in inspect.signature(recycle).parameters}
        source = given.get("task", tuned["task"])
        task = open_task(dict(source) if isinstance(source, Mapping) else source, **reading)
        opened = open_base(base, open_store(given.get("store")))
        arguments: dict[str, Any] = {
            **{key: value for key, value in tuned.items() if key not in columns},
            **{key: given[key] for key in ("store", "seeds", "train_size", "per_class", "keep") if key in given},
            "base": opened, "task": task, "name": given.get("name") or f"{task.name}-{method.name}-{opened.name}",
            "training": {**_plain(tuned.get("training")), **_plain(given.get("training"))},
        }  # fmt: skip
        if given.get("tune") is not None:
            arguments["method"] = given["tune"]
        with standing_in():
            found: list[Any] = tune(**arguments, dry_run=True)
        made = [replace(one, job="recycle") if method.trains else _untrained(one) for one in found]
        for one in made:
            self.deltas[slug(one.name)] = arguments
        return made

    def _upgrade(self, given: dict[str, Any]) -> list[Forecast]:
        (old, pending), (new, pending_new) = self._base(given["old"]), self._base(given["new"])
        store = open_store(given.get("store"))
        name = slug(f"{open_base(old, store).name}-{open_base(new, store).name}")
        place = Path(given.get("out") or store.folder / "upgrades")
        if pending or pending_new or self.deltas:
            return [Forecast("upgrade", name, place, notes=(PENDING,))]
        found: Any = upgrade(**{**given, "old": old, "new": new}, dry_run=True)
        at_most = f"{len(found.deltas)} deltas: at most {found.at_most:.0f} s if all need every step"
        return [Forecast("upgrade", name, place, seconds=found.scoring, notes=(at_most,))]

    def _evaluate(self, given: dict[str, Any]) -> list[Forecast]:
        if isinstance(given["delta"], str) and slug(given["delta"]) in self.deltas:
            place = open_store(given.get("store")).folder / "deltas"
            return [Forecast("evaluate", slug(given["delta"]), place, notes=(PENDING,))]
        found = self.stored.get(slug(given["delta"]), []) if isinstance(given["delta"], str) else []
        return [forecast_evaluation(**{**given, "delta": found[0] if len(found) == 1 else given["delta"]})]

    def _compare(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        with standing_in() if pending else nullcontext():
            made: Any = compare_arms(**{**given, "base": base}, dry_run=True)
        return list(made)

    def _anytime(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        with standing_in() if pending else nullcontext():
            made: Any = anytime_matrix(**{**given, "base": base}, dry_run=True)
        return list(made)

    def _transfer(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        with standing_in() if pending else nullcontext():
            made: Any = transfer_grid(**{**given, "base": base}, dry_run=True)
        return list(made)

    def _recycle_grid(self, given: dict[str, Any]) -> list[Forecast]:
        base, pending = self._base(given["base"])
        with standing_in() if pending else nullcontext():
            made: Any = recycle_grid(**{**given, "base": base}, dry_run=True)
        return list(made)

    def _report(self, given: dict[str, Any]) -> list[Forecast]:
        out = Path(given.get("out") or "report.html")
        return [Forecast("report", out.name, out.parent, notes=("a page is made in seconds from what is stored",))]


def _without_prompts(method: Any) -> list[Any]:
    """Methods whose prompts are still to be made, stood in for by prompt tuning: its step costs about as much."""
    known = {setting.name for setting in registry.describe("transfer/prompt_tuning")}
    made: list[Any] = []
    for one in registry.parse(method, registry.TUNING):
        given = registry.settings_of(one).items() if one.takes else ()
        shared = {key: value for key, value in given if key in known and value is not None}
        made.append({"name": "prompt_tuning", **shared} if one.takes else one)
    return made


def _untrained(one: Forecast) -> Forecast:
    """The same without training: scored on validation and test."""
    if one.trial is None:
        return replace(one, job="recycle", steps=0)
    trial = replace(one.trial, step_seconds=0.0, evaluated=(0,), trainable=0, memory=replace(
        one.trial.memory, gradients=0, moments=0, best=0, activations=0, methods=0))  # fmt: skip
    during = one.trial.evaluation_seconds
    evaluations = one.seconds - one.steps * one.trial.step_seconds
    afterwards = evaluations - len(one.trial.evaluated) * during
    return replace(one, job="recycle", steps=0, trial=trial, seconds=during + max(0.0, afterwards))


def _plain(training: Any) -> dict[str, Any]:
    return training.model_dump(exclude_unset=True) if hasattr(training, "model_dump") else dict(training or {})
