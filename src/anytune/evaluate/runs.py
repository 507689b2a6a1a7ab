"""Runs: what a comparison needs of each delta's manifest, in one flat shape.

The demo writes an arm into ``tags["arm"]``; other stores need not. Without the tag, the arm is the recycling method's
name, else "fresh".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anytune.evaluate.curves import Curve, curve_of
from anytune.evaluate.scores import number
from anytune.manifests import Manifest

FRESH, DIRECT, INITIALIZE, WHOLE_BUDGET = "fresh", "direct", "initialize", "fresh, whole budget"
#: arms in the order in which a reader wants them; others follow by name
ARM_ORDER = (DIRECT, INITIALIZE, FRESH, WHOLE_BUDGET)


@dataclass(frozen=True)
class Artefact:
    """A manifest and the folder it stands in (``folder`` is shown by its name only)."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Run:
    """One tuned (or recycled) delta. Scores are raw, as the metric gives them; ``old_steps`` were spent before it."""

    manifest: Manifest
    folder: Path
    task: str
    task_key: tuple[str, str]
    base: str
    base_key: str
    arm: str
    method: str
    metric: str
    seed: int
    test: float | None
    validation: float | None
    curve: Curve | None
    steps: int
    old_steps: int
    seconds: float
    #: id of the outdated delta this one was recycled from
    outdated: str | None = None
    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def arm_of(manifest: Manifest) -> str:
    """The arm a delta belongs to: its tag, else its recycling method's name, else "fresh"."""
    tagged = manifest.tags.get("arm")
    if tagged:
        return tagged
    recycled = [record.name for record in manifest.methods if record.name.startswith("recycle/")]
    return recycled[0].removeprefix("recycle/") if recycled else FRESH


def arm_rank(arm: str) -> tuple[int, str]:
    """Sort key: the known arms in reading order, then others by name."""
    return (ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER), arm)


def score_of(manifest: Manifest, split: str) -> float | None:
    """The task's own metric on ``split``; None if it is missing, None or not finite.

    Manifests are written with sorted keys, so the metric is found by its name and never by its place.
    """
    scores = manifest.scores.get(split) or {}
    metric = metric_of(manifest)
    return number(scores.get(metric))


def metric_of(manifest: Manifest) -> str:
    """The metric that decides: the task's; where no score has that name, the only or first one there is."""
    named = manifest.task.metric if manifest.task else ""
    for split in ("test", "validation"):
        scores = manifest.scores.get(split) or {}
        if scores and named not in scores:
            return next(iter(scores))
        if scores:
            return named
    return named or "accuracy"


def runs_of(artefacts: Iterable[Artefact]) -> list[Run]:
    """All deltas as runs; where a seed stands twice in one cell, the settings that differ become the variant.

    Of two runs with equal settings and seed the newer one is kept, so that no seed counts twice.
    """
    artefacts = list(artefacts)
    deltas = {artefact.manifest.id or str(artefact.folder): artefact for artefact in artefacts}
    deltas = {key: artefact for key, artefact in deltas.items() if artefact.manifest.kind == "delta"}
    runs = [_run(artefact, deltas) for artefact in deltas.values()]
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.task_key, run.base_key, run.arm, run.method), []).append(run)
    return [run for cell in cells.values() for run in _variants(cell)]


def _run(artefact: Artefact, deltas: Mapping[str, Artefact]) -> Run:
    manifest = artefact.manifest
    task = manifest.task
    metric = metric_of(manifest)
    outdated = next((parent.id for parent in manifest.parents if parent.role == "delta"), None)
    return Run(
        manifest=manifest,
        folder=artefact.folder,
        task=task.name if task else "(no task)",
        task_key=(task.name, task.content) if task else ("(no task)", ""),
        base=manifest.base.name or manifest.base.backbone[:10],
        base_key=manifest.base.backbone,
        arm=arm_of(manifest),
        method=_method_of(manifest, deltas),
        metric=metric,
        seed=manifest.seed,
        test=score_of(manifest, "test"),
        validation=score_of(manifest, "validation"),
        curve=curve_of(manifest.curve, metric),
        steps=manifest.steps,
        old_steps=_old_steps(manifest, deltas),
        seconds=manifest.seconds,
        outdated=outdated,
        settings=_settings_of(manifest),
    )


def _method_of(manifest: Manifest, deltas: Mapping[str, Artefact], depth: int = 0) -> str:
    """Tuning methods joined by " + "; direct reuse trains nothing, so it takes the method of what it reuses."""
    own = [record.name for record in manifest.methods if not record.name.startswith("recycle/")]
    if own or depth > 20:
        return " + ".join(own) or "none"
    for parent in manifest.parents:
        if parent.role == "delta" and parent.id in deltas:
            return _method_of(deltas[parent.id].manifest, deltas, depth + 1)
    return "none"


def _old_steps(manifest: Manifest, deltas: Mapping[str, Artefact]) -> int:
    """Steps of all outdated deltas this one stands on, each counted once."""
    total = 0
    seen: set[str] = set()
    waiting = [parent for parent in manifest.parents if parent.role == "delta"]
    while waiting:
        parent = waiting.pop()
        if parent.id in seen or parent.id not in deltas:
            continue
        seen.add(parent.id)
        older = deltas[parent.id].manifest
        total += older.steps
        waiting += [grand for grand in older.parents if grand.role == "delta"]
    return total


def _settings_of(manifest: Manifest) -> dict[str, Any]:
    """Everything a person set, flat; without the seed and what names another artefact."""
    flat = {f"{record.name}.{key}": value for record in manifest.methods for key, value in record.settings.items()}
    flat |= manifest.training
    return {key: value for key, value in flat.items() if key.rsplit(".", 1)[-1] not in {"seed", "delta", "base"}}


def _variants(cell: list[Run]) -> list[Run]:
    if len({run.seed for run in cell}) == len(cell):
        return cell
    keys = sorted({key for run in cell for key in run.settings})
    differing = [key for key in keys if len({repr(run.settings.get(key)) for run in cell}) > 1]
    if not differing and len({run.steps for run in cell}) > 1:
        named = [(run, f"{run.steps} steps") for run in cell]
    else:
        named = [(run, ", ".join(f"{key} {run.settings.get(key)}" for key in differing)) for run in cell]
    newest: dict[tuple[str, int], Run] = {}
    for run, variant in sorted(named, key=lambda pair: pair[0].manifest.created):
        newest[(variant, run.seed)] = replace(run, variant=variant)
    return list(newest.values())
