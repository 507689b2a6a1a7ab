"""What an upgrade takes of what it tried: the decision of each delta, and the artefact it becomes."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from anytune.errors import DeltaError
from anytune.jobs.command import recipe_of
from anytune.jobs.deltas import AnyDelta
from anytune.jobs.keeping import PREDICTIONS_NAME
from anytune.jobs.moving import moved
from anytune.jobs.upgrade_runs import Bench, scaled, step_seconds, tuned_for, tuned_steps
from anytune.jobs.upgrade_shelf import Found, Shelf
from anytune.jobs.upgrade_steps import BY_NAME, Attempt, Decision, decide, ladder
from anytune.manifests import METRICS_NAME, SAMPLE_NAME, Manifest, MethodRecord, Parent, run_key
from anytune.models.adapters import AdapterDelta
from anytune.models.probe import make_probe
from anytune.store import Entry
from anytune.store.entry import stored_as

#: What the page and tables call runs that an upgrade chose.
ARM = "upgrade"


def climb_of(shelf: Shelf, entry: Entry, found: Found, only: Collection[str] | None) -> list[str]:
    """The steps that a delta may climb."""
    return ladder(
        rows=has_rows(shelf, entry, found), texts=shelf.unlabelled is not None, fits=found.fits,
        scales=found.scales, only=only,
    )  # fmt: skip


def has_rows(shelf: Shelf, entry: Entry, found: Found) -> bool:
    """Whether there are training rows, as far as anybody has looked."""
    return shelf.source(entry) is not None and found.lacking is None


def wanted_of(found: Found, only: Collection[str] | None) -> list[Attempt]:
    """What was tried of the steps that are wanted; ``keep`` is scored in any case."""
    return [one for one in found.attempts if only is None or one.step == "old" or one.step in only]


def decision_of(shelf: Shelf, entry: Entry, found: Found, only: Collection[str] | None) -> Decision | None:
    """What to take of what was tried so far; None for a delta that was not scored."""
    if found.problem or found.attempt("old") is None or entry.manifest.task is None:
        return None
    climb = climb_of(shelf, entry, found, only)
    wanted = {name for name, step in BY_NAME.items() if step.rows and (only is None or name in only)}
    lacks = bool(wanted) and not has_rows(shelf, entry, found)
    return decide(
        wanted_of(found, only), climb, entry.manifest.task.metric, shelf.tolerance, lacks_rows=lacks,
        lacking=found.lacking,
    )  # fmt: skip


def stored_choices(shelf: Shelf, key: str) -> dict[str, Entry]:
    """What earlier calls of the same upgrade stored: id of the outdated delta -> artefact."""
    return {id_: entries[-1] for id_, entries in _choices(shelf, key).items()}


def remove_superseded(shelf: Shelf, key: str) -> None:
    """Remove choices that a better one took the place of, where the upgrade was killed between the two."""
    for entries in _choices(shelf, key).values():
        for entry in entries[:-1]:
            shelf.store.remove(entry, force=True)


def is_final(entry: Entry) -> bool:
    """Whether a stored choice is one that the same command would not change."""
    return (entry.manifest.decision or {}).get("flag") in ("", "short")


def _choices(shelf: Shelf, key: str) -> dict[str, list[Entry]]:
    """Id of the outdated delta -> what is stored for it, what counts last."""
    found: dict[str, list[Entry]] = {}
    for entry in shelf.store.find("delta", base=shelf.new_base.identity):
        decision = entry.manifest.decision or {}
        if decision.get("upgrade") == key and isinstance(decision.get("delta"), str):
            found.setdefault(decision["delta"], []).append(entry)
    # a run is as old as its training: by age alone, what it took the place of might count
    return {id_: sorted(entries, key=is_final) for id_, entries in found.items()}


def store_choice(
    shelf: Shelf, bench: Bench, entry: Entry, found: Found, decision: Decision, key: str, earlier: Entry | None
) -> Entry | None:
    """The artefact of a decision in the store; one that an earlier, unfinished call stored gives way to a better one.

    Args:
        key: of the upgrade.
        earlier: what is stored for this delta.

    Returns:
        None where nothing could be taken.
    """
    if decision.step is None:
        return None
    record = decision_record(shelf, entry, found, decision, key)
    trained = BY_NAME[decision.step].share > 0
    made = _trained(shelf, entry, found, decision, record) if trained else _moved(
        shelf, bench, entry, found, decision, record
    )  # fmt: skip
    if earlier is not None and earlier.id != made.id:
        shelf.store.remove(earlier, force=True)
    elif earlier is not None:  # the same weights, and more is known of them: all steps tried, another flag
        made = shelf.store.update(earlier, decision=record)
    return made


def decision_record(shelf: Shelf, entry: Entry, found: Found, decision: Decision, key: str) -> dict[str, Any]:
    """What the manifest keeps of a decision."""
    assert entry.manifest.task is not None
    return {
        "upgrade": key, "delta": entry.id, "from": shelf.old_base.name, "to": shelf.new_base.name,
        "step": decision.step, "flag": decision.flag, "reason": decision.reason,
        "metric": entry.manifest.task.metric, "old": decision.old, "goal": decision.goal, "score": decision.score,
        "tolerance": shelf.tolerance, "attempts": [attempt.record() for attempt in found.attempts],
        "seconds": round(sum(attempt.seconds for attempt in found.attempts), 3),
        # for the next upgrade: this one may have trained for a part of these, or not at all
        "tuned_steps": tuned_steps(entry), "step_seconds": round(step_seconds(entry), 6),
        "tuned_for": tuned_for(entry),
    }  # fmt: skip


def _tags(entry: Entry) -> dict[str, str]:
    return {**{key: value for key, value in entry.manifest.tags.items() if key != "hub"}, "arm": ARM}


def _trained(shelf: Shelf, entry: Entry, found: Found, decision: Decision, record: dict[str, Any]) -> Entry:
    """A run of the store of attempts, copied into the store."""
    attempt = found.attempt(decision.step or "")
    assert attempt is not None
    runs = shelf.attempts_store.find("delta", run=attempt.settings["run"])
    if not runs:
        raise DeltaError(
            f"the run '{decision.step}' of '{entry.reference}' is no longer in the upgrade's work folder",
            why="It was removed while the upgrade was interrupted.",
            fix=f"anytune store work --store {shelf.store.folder}   (remove the upgrade there, then upgrade again)",
        )
    run = runs[-1]
    manifest = run.manifest.model_copy(deep=True)
    manifest.decision, manifest.tags = record, _tags(entry)
    # two upgrades, or two deltas tuned alike, may come to the same run: each has an artefact of its own
    manifest.run = run_key(job="upgrade", upgrade=record["upgrade"], delta=entry.id, run=run.manifest.run)
    manifest.scores.pop("test", None)  # a held-out row stood in for the test split
    if manifest.task is not None:
        manifest.task.counts.pop("test", None)
    sample = _has_sample(entry)

    def write(folder: Path) -> None:
        for name in (*run.manifest.files, METRICS_NAME):
            if (run.folder / name).is_file() and name != PREDICTIONS_NAME:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder / name, folder / name)
        if sample:
            shutil.copyfile(entry.folder / SAMPLE_NAME, folder / SAMPLE_NAME)

    manifest.sample = entry.manifest.sample if sample else None
    return Entry(shelf.store.add(manifest, write), manifest)


def _moved(
    shelf: Shelf, bench: Bench, entry: Entry, found: Found, decision: Decision, record: dict[str, Any]
) -> Entry:  # fmt: skip
    """The outdated weights on the new base, whole or in part."""
    base, old, attempt = shelf.new_base, entry.manifest, found.attempt(decision.step or "")
    assert attempt is not None
    assert old.task is not None
    resident = bench.resident(base)
    delta: AnyDelta = moved(entry, shelf.old_base, base, bench.own(entry))
    method: dict[str, Any] = {"name": "direct"}
    if decision.step == "scale":
        coefficient = float(attempt.settings["coefficient"])
        delta = scaled(delta, coefficient, base)
        method = {"name": "scaled", "grid": [coefficient]}
    with resident.holding(delta, old.task.kind, old.label_names) as model:
        probe = make_probe(model, base.config.vocab_size, old.seed)
    parents = [Parent(id=base.manifest.id, role="base", name=base.name)] if base.manifest and base.manifest.id else []
    named = method["name"]
    recycled = MethodRecord(name=f"recycle/{named}", settings={k: v for k, v in method.items() if k != "name"})
    sample = _has_sample(entry)
    manifest = Manifest(
        kind="delta", name=f"{old.task.name}-{named}-{base.name}", base=base.identity,
        run=run_key(job="upgrade", upgrade=record["upgrade"], delta=entry.id, method=method),
        parents=[*parents, Parent(id=entry.id, role="delta", name=entry.name)],
        form="peft" if isinstance(delta, AdapterDelta) else "full", task=old.task, label_names=old.label_names,
        methods=[recycled, *(one for one in old.methods if not one.name.startswith("recycle/"))],
        training=old.training, seed=old.seed, scores={"validation": dict(attempt.scores)},
        seconds=record["seconds"], environment=bench.runtime.environment(), probe=probe,
        recipe=recipe_of("recycle", base=base, delta=entry.reference, method=method, task=None)
        | ({"task": old.task.ref} if old.task.ref else {}),
        tags=_tags(entry), sample=old.sample if sample else None, decision=record,
        notes=[f"scored on {_rows(entry, shelf)} stored held-out rows; the test split was not read"],
    )  # fmt: skip

    def write(folder: Path) -> None:
        if isinstance(delta, AdapterDelta):
            delta.save(folder, base.identity)
        else:
            delta.save(folder)
        if sample:
            shutil.copyfile(entry.folder / SAMPLE_NAME, folder / SAMPLE_NAME)

    return Entry(shelf.store.add(manifest, write), manifest)


def _rows(entry: Entry, shelf: Shelf) -> int:
    return entry.manifest.sample.rows if entry.manifest.sample else len(shelf.sample(entry).validation)


def _has_sample(entry: Entry) -> bool:
    return entry.manifest.sample is not None and (entry.folder / stored_as(entry, SAMPLE_NAME)).is_file()
