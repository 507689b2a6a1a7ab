"""Bring a whole shelf of deltas over to an upgraded base: ``anytune upgrade``.

Every delta of the old base is scored on held-out rows that lie beside it, on its own base and as it is on the new one;
then it climbs (:mod:`anytune.jobs.upgrade_steps`) until the cheapest step that brings it back within the tolerance.
First all are scored, which is cheap; then each training step is tried on all that still need it, so that a budget is
spent on the cheap steps first. The test split is never looked at to decide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.fanout import Unit, check_fan_out, run_units, worker_count
from anytune.engine.progress import Reporter, Silent
from anytune.errors import AnytuneError, SettingsError, StoreError, unknown
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import open_base, open_domain, open_store
from anytune.jobs.resuming import RUN_NAME
from anytune.jobs.tune import Source
from anytune.jobs.upgrade_choices import (
    climb_of,
    decision_of,
    is_final,
    remove_superseded,
    store_choice,
    stored_choices,
    wanted_of,
)
from anytune.jobs.upgrade_headroom import STEP as HEADROOM
from anytune.jobs.upgrade_headroom import Headroom, groups, known, look_further, marked
from anytune.jobs.upgrade_results import Outcome, Upgrade, shelf_of, told_by
from anytune.jobs.upgrade_runs import Bench, score_shelf, steps_for, told, train_step
from anytune.jobs.upgrade_shelf import FOUND, Shelf
from anytune.jobs.upgrade_steps import BY_NAME, STEPS, next_step, seconds_of, share_of
from anytune.manifests import run_key, write_atomic
from anytune.models.base import Base
from anytune.store import Entry, Store
from anytune.store.names import slug

JOURNAL_NAME, PAGE_NAME, SPENT_NAME = "upgrade.jsonl", "upgrade.html", "spent.json"


@unwritten
def upgrade(
    store: Store | Source | None = None,
    *,
    old: Base | Entry | Source,
    new: Base | Entry | Source,
    budget: str | float | None = None,
    tolerance: str | float = 0.01,
    tasks: Mapping[str, Task | Source | Mapping[str, Any]] | None = None,
    unlabelled: Source | None = None,
    deltas: Sequence[Entry | Source] | None = None,
    steps: Collection[str] | None = None,
    headroom: bool = False,
    workers: int | None = None,
    fan_out: str = "processes",
    out: Source | None = None,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Upgrade:
    """Bring every delta of ``old`` in a store over to ``new``, each by the cheapest step that brings its score back.

    The same command goes on where it was interrupted, and gives back at once what is decided already.

    Args:
        old: the base the deltas were tuned on.
        new: the upgraded base.
        budget: the time it may take, such as "30m"; a step that is not expected to fit is not begun.
        tolerance: how much of a score may be lost: "1%" is one point of an accuracy, and one hundredth of an error.
        tasks: name of a task or a delta -> its data, where manifests do not say where to find them. Steps that train
            need them; held-out rows are left out of what they train on.
        unlabelled: texts without labels (a file, or "sample:NAME"), for deltas without training rows.
        deltas: these alone; default: every delta of the old base that has weights.
        steps: which steps of the ladder are wanted; default: all.
        headroom: also tune one delta of each task on, to mark those that the new base can do more for than bring their
            old score back (:mod:`anytune.jobs.upgrade_headroom`); deltas upgraded before are looked at as well.
        workers: processes that share the deltas; default: this one alone.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        dry_run: change nothing; give a :class:`~anytune.jobs.upgrade_forecast.UpgradeForecast` instead.
        out: folder of ``upgrade.jsonl`` and the page; default: ``upgrades/OLD-NEW-...`` in the store.

    Raises:
        AnytuneError: bad arguments, or bases that cannot be opened. What is wrong with single deltas is not raised:
            it stands in their outcomes (:attr:`Upgrade.problems`), and the others go on.
    """
    tell, place = reporter or Silent(), open_store(store, create=False)
    began, limit, share = time.time(), seconds_of(budget), share_of(tolerance)
    check_fan_out(fan_out)
    check_steps(steps)
    before, after = open_base(old, place), open_base(new, place)
    check_bases(before, after, workers, old, new)
    entries, broken = shelf_of(place, before, deltas)
    if deltas is None and not broken:
        check_tasks(tasks or {}, entries)
    if unlabelled is not None:
        open_domain(unlabelled, heldout_fraction=0.0)  # refused before anything is computed
    key = upgrade_key(before, after, share, steps)
    if dry_run:
        from anytune.jobs.upgrade_forecast import forecast_upgrade

        shelf = Shelf(place=place.folder.resolve(), old=before, new=after, work=place.work_folder(key),
                      tolerance=share, tasks=dict(tasks or {}), unlabelled=unlabelled)  # fmt: skip
        forecast: Any = forecast_upgrade(shelf, entries, broken, key, steps, workers or 1, headroom)
        return forecast
    folder = Path(out or place.folder / "upgrades" / f"{slug(f'{before.name}-{after.name}')}-{key[:8]}")
    title = f"upgrade {before.name} to {after.name}"
    with place.at_work(key, lambda _: _busy(title)) as work:
        _describe(work, key, title, share, before, after)
        earlier = _spent(work)
        write_atomic(work / SPENT_NAME, json.dumps({"seconds": earlier, "since": began}).encode())
        shelf = Shelf(
            place=place.folder.resolve(), old=before, new=after, work=work.resolve(), tolerance=share,
            tasks=dict(tasks or {}), unlabelled=unlabelled, steps=steps,
            deadline=None if limit is None else began + limit - earlier,
        )  # fmt: skip
        sent = replace(shelf, old=old, new=new)
        crew = _Crew(sent if workers and workers > 1 else shelf, workers or 1, fan_out, title, tell)
        climbing = _Climb(shelf, entries, key, steps, crew)
        try:
            climbing.run()
            if headroom:
                climbing.look_further()
        finally:
            seconds = earlier + time.time() - began
            write_atomic(work / SPENT_NAME, json.dumps({"seconds": round(seconds, 3)}).encode())
        outcomes = [*climbing.outcomes(), *broken]
        journal = folder / JOURNAL_NAME
        records = [one.record() for one in outcomes]
        if deltas is not None:
            records = [*_other_records(journal, records), *records]
        write_atomic(journal, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode())
        result = Upgrade(before.name, after.name, share, outcomes, journal, folder / PAGE_NAME, round(seconds, 3))
        from anytune.report.upgrade_page import write_page

        write_page(result.page, before.name, after.name, share, records, seconds)
        if not climbing.failed and not _holds_others(work, entries) and all(
            one.problem is not None or (one.decision is not None and one.decision.final) for one in outcomes
        ):  # fmt: skip
            place.end_work(key)
    return result


@dataclass
class _Crew:
    """Who does the work: this process, or several."""

    shelf: Shelf
    workers: int
    fan_out: str
    title: str
    reporter: Reporter

    def score(self, references: Sequence[str]) -> None:
        """Score deltas on both bases."""
        if self.workers < 2 or len(references) < 2:
            score_shelf(shelf=self.shelf, references=references, reporter=self.reporter)
            return
        count = worker_count(len(references), self.workers)
        cuts = [round(number * len(references) / count) for number in range(count + 1)]
        units = [
            Unit(f"deltas {first + 1} to {last}", score_shelf,
                 {"shelf": self.shelf, "references": list(references[first:last])}, last - first)
            for first, last in pairwise(cuts) if last > first
        ]  # fmt: skip
        run_units(units, title=self.title, reporter=self.reporter, workers=count, fan_out=self.fan_out)

    def train(self, step: str, entries: Sequence[Entry]) -> None:
        """Try a training step on each of some deltas."""
        self._each(train_step, step, step, [(entry, {"step": step}) for entry in entries])

    def look_further(self, pairs: Sequence[tuple[Entry, Entry]]) -> None:
        """Tune deltas on beyond what was taken for them; each with what that is."""
        self._each(look_further, "headroom", HEADROOM, [(entry, {"made": made.reference}) for entry, made in pairs])

    def _each(
        self, function: Callable[..., None], title: str, step: str, work: Sequence[tuple[Entry, dict[str, Any]]]
    ) -> None:  # fmt: skip
        """Do what trains as many steps as a step of the ladder, on each of some deltas."""
        units = [
            Unit(f"{entry.reference}, {title}", function,
                 {"shelf": self.shelf, "reference": entry.reference, **more}, steps_for(entry, step))
            for entry, more in work
        ]  # fmt: skip
        if self.workers < 2 or len(units) < 2:
            for unit in units:
                function(**unit.arguments, reporter=self.reporter)
            return
        count = worker_count(len(units), self.workers)
        run_units(units, title=f"{self.title}: {title}", reporter=self.reporter, workers=count, fan_out=self.fan_out)


class _Climb:
    """The deltas of an upgrade on their way up; what is decided is stored after each step."""

    def __init__(
        self, shelf: Shelf, entries: Sequence[Entry], key: str, only: Collection[str] | None, crew: _Crew
    ) -> None:
        self.shelf, self.entries, self.key, self.only, self.crew = shelf, entries, key, only, crew
        self.made: dict[str, Entry] = stored_choices(shelf, key)
        self.done = {id_ for id_, entry in self.made.items() if is_final(entry)}
        self.failed: dict[str, str] = {}

    def run(self) -> None:
        """All steps."""
        remove_superseded(self.shelf, self.key)
        going = [entry for entry in self.entries if entry.id not in self.done]
        for entry in going:
            self.shelf.look_again(entry)
        self.crew.score([entry.reference for entry in going])
        self.settle(going, last=False)
        for step in (step.name for step in STEPS if step.share):
            todo = [entry for entry in going if self._next(entry) == step]
            if todo and not self.shelf.time_is_up():
                self.crew.train(step, todo)
                self.settle(todo, last=False)
        self.settle(going, last=True)

    def _next(self, entry: Entry) -> str | None:
        found = self.shelf.found(entry)
        decision = decision_of(self.shelf, entry, found, self.only)
        if decision is None or entry.manifest.task is None:
            return None
        climb = climb_of(self.shelf, entry, found, self.only)
        return next_step(wanted_of(found, self.only), climb, decision.goal, entry.manifest.task.metric)

    def settle(self, entries: Sequence[Entry], *, last: bool) -> None:
        """Store what is decided; at the end also the best of what is not."""
        bench: Bench | None = None
        for entry in entries:
            found = self.shelf.found(entry)
            decision = decision_of(self.shelf, entry, found, self.only)
            if entry.id in self.done or decision is None or not (decision.final or last):
                continue
            bench = bench or Bench(self.shelf)
            try:
                made = store_choice(self.shelf, bench, entry, found, decision, self.key, self.made.get(entry.id))
            except AnytuneError as problem:
                self.failed[entry.id] = told(problem)
                continue
            if made is not None:
                self.made[entry.id] = made
            self.done.add(entry.id)

    def look_further(self) -> None:
        """Of each task, mark the deltas that tuning on would do more for."""
        of_tasks = groups(self.entries, self.made)
        unknown_yet = [group[0] for group in of_tasks if self._headroom(group) is None]
        self.crew.look_further([(entry, self.made[entry.id]) for entry in unknown_yet])
        for group in of_tasks:
            found = self._headroom(group)
            for entry in group:
                if found and "headroom" not in (self.made[entry.id].manifest.decision or {}):
                    self.made[entry.id] = marked(self.shelf, self.made[entry.id], found)

    def _headroom(self, group: Sequence[Entry]) -> Headroom | None:
        """What is known of it by any delta of a task."""
        return next((found for entry in group if (found := known(self.shelf, self.made[entry.id]))), None)

    def outcomes(self) -> list[Outcome]:
        """What became of each."""
        return [self._outcome(entry) for entry in self.entries]

    def _outcome(self, entry: Entry) -> Outcome:
        manifest, made, found = entry.manifest, self.made.get(entry.id), self.shelf.found(entry)
        methods = [one.name.rpartition("/")[2] for one in manifest.methods if not one.name.startswith("recycle/")]
        known = Outcome(
            delta=entry.reference, task=manifest.task.name if manifest.task else "", seed=manifest.seed,
            metric=manifest.task.metric if manifest.task else "", method="+".join(methods),
            made=made.reference if made is not None else None, attempts=found.attempts,
            headroom=(made.manifest.decision or {}).get("headroom") if made is not None else None,
        )  # fmt: skip
        problem = found.problem or self.failed.get(entry.id)
        if problem is not None:
            return replace(known, problem=problem)
        if made is not None and not found.attempts:  # decided by an earlier call, whose work folder is gone
            return replace(known, **told_by(made.manifest.decision or {}))
        return replace(known, decision=decision_of(self.shelf, entry, found, self.only))


def upgrade_key(old: Base, new: Base, tolerance: float, steps: Collection[str] | None = None) -> str:
    """What an upgrade is found again by."""
    return run_key(
        job="upgrade", old=[old.identity.backbone, old.identity.vocabulary],
        new=[new.identity.backbone, new.identity.vocabulary],
        tolerance=tolerance, **({} if steps is None else {"steps": sorted(steps)}),
    )  # fmt: skip


def check_steps(steps: Collection[str] | None) -> None:
    """Refuse steps that are none of the ladder (SettingsError)."""
    for step in steps or ():
        if step not in BY_NAME:
            raise unknown("step of an upgrade", step, BY_NAME, SettingsError)


def check_tasks(tasks: Collection[str], entries: Sequence[Entry]) -> None:
    """Refuse data of tasks and deltas that are not on the shelf (SettingsError)."""
    known = {one for entry in entries for one in (entry.reference, entry.name)}
    known |= {entry.manifest.task.name for entry in entries if entry.manifest.task}
    for name in tasks:
        if name not in known:
            raise unknown("task or delta of this shelf", name, sorted(known), SettingsError)


def _holds_others(work: Path, entries: Sequence[Entry]) -> bool:
    """Whether the work folder knows of deltas that this call was not asked about."""
    ours = {entry.id[:32] or entry.reference for entry in entries}
    return any(path.stem not in ours for path in (work / FOUND).glob("*.json"))


def check_bases(old: Base, new: Base, workers: int | None, *given: Any) -> None:
    """Refuse an upgrade from a base to itself, and open bases for workers (SettingsError)."""
    if (old.identity.backbone, old.identity.vocabulary) == (new.identity.backbone, new.identity.vocabulary):
        raise SettingsError(
            f"{old.name} and {new.name} are the same base ({old.identity.backbone[:10]})",
            why="Its deltas answer as they did.", fix="--to the upgraded base",
        )  # fmt: skip
    if workers is not None and workers > 1 and any(isinstance(one, Base) for one in given):
        raise SettingsError(
            "workers cannot be sent an open base", why="Other processes open it again.", fix="its folder or name"
        )


def _busy(title: str) -> None:
    raise StoreError(f"{title}: another process is at work on it", why="Both would do the same.", fix="wait for it")


def _other_records(journal: Path, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What earlier calls wrote down of deltas that this one was not asked about."""
    ours = {one["delta"] for one in records}
    try:
        found = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        return [one for one in found if one["delta"] not in ours]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _describe(work: Path, key: str, title: str, share: float, old: Base, new: Base) -> None:
    content = {"key": key, "title": title, "settings": {"job": "upgrade", "base": new.name, "from": old.name,
                                                        "tolerance": share}}  # fmt: skip
    write_atomic(work / RUN_NAME, (json.dumps(content, indent=1) + "\n").encode())


def _spent(work: Path) -> float:
    """Seconds of earlier calls; one that was killed lasted at least until it last wrote something."""
    try:
        content = json.loads((work / SPENT_NAME).read_text())
        seconds, since = float(content["seconds"]), content.get("since")
        if since is None:
            return seconds
        last = max(path.lstat().st_mtime for path in work.rglob("*"))
        return seconds + max(0.0, last - float(since))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0.0
