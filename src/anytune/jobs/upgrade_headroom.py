"""What an upgraded base can do beyond a delta's old score: ``anytune upgrade --headroom``.

A climb ends at the first step that brings the old score back, and does not know what tuning on a better base would
give. To tell, one delta of each task is tuned on from its old weights for a quarter of the steps it was once tuned
with, and not ended early. Where that scores more than what was taken, by more than the tolerance and by more than
chance, it is marked, and with it all deltas of the task that stand as far below. What was taken stays: a mark says
where tuning pays.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.data.tasks import Task
from anytune.engine.interrupts import InterruptedRunError
from anytune.engine.progress import Reporter, Silent
from anytune.errors import DeltaError
from anytune.evaluate.jackknife import jackknife_error
from anytune.jobs.deltas import load_delta
from anytune.jobs.recycle import recycle
from anytune.jobs.upgrade_runs import BROKEN, LOOKS, Bench, seconds_for, steps_for, told, tuned_for
from anytune.jobs.upgrade_shelf import Shelf
from anytune.jobs.upgrade_steps import BY_NAME, ROUNDING, worth
from anytune.manifests import write_atomic
from anytune.metrics import METRICS
from anytune.store import Entry

#: Below the upgrade's work folder: what came of tuning on, a small file for each delta that was.
PLACE = "headroom"
#: What is done to see it: the step of the ladder of that name, without an end at the old score.
STEP = "initialize"
#: Standard errors over held-out rows that a gain must exceed. The best of a few looks counts, so more than 1.645.
SURE = 2.0


@dataclass(frozen=True)
class Headroom:
    """What tuning one delta on gave.

    Attributes:
        probe: the delta.
        score: best main metric on its held-out rows.
        taken: the same of what the upgrade took for it.
        error: standard error of the difference from what the upgrade took for it, row by row (``jackknife_error``);
            None where there are too few rows to tell.
        step: training step that scored best.
        steps: training steps that were made.
        seconds: what it cost.
    """

    probe: str
    score: float
    taken: float
    error: float | None
    step: int
    steps: int
    seconds: float


def exceeds(score: float, taken: float | None, error: float | None, metric: str, tolerance: float) -> bool:
    """Whether a score is better than what was taken by more than the tolerance, and by more than chance.

    Args:
        taken: the score of what was taken.
        error: standard error of the difference; None where it is unknown, which nothing exceeds.
        tolerance: points of a score, or a share of an error (``goal_of``).
    """
    if error is None or taken is None:
        return False
    allowed = tolerance if METRICS[metric].higher_is_better else tolerance * abs(taken)
    return worth(score, metric) - worth(taken, metric) > max(allowed, SURE * error) + ROUNDING


def can_do_more(found: Headroom, own: float | None, metric: str, tolerance: float) -> bool:
    """Whether a task's headroom says of one of its deltas that the new base can do more for it.

    The one that was tuned on must have gained: that a delta of unmeasured error stands below it is not enough.

    Args:
        own: the score of what was taken for the delta.
    """
    return all(exceeds(found.score, taken, found.error, metric, tolerance) for taken in (found.taken, own))


def groups(entries: Sequence[Entry], made: Mapping[str, Entry]) -> list[list[Entry]]:
    """The deltas that one of them can speak for: those of one task that were tuned in one way (``way_of_tuning``).

    Of deltas that were brought back by their own weights; what was taught or tuned afresh starts elsewhere.

    Args:
        made: id of an outdated delta -> what was taken for it.
    """
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        taken = made[entry.id].manifest.decision or {} if entry.id in made else {}
        step = BY_NAME.get(taken.get("step") or "")
        if taken.get("flag") == "" and step is not None and step.fits and entry.manifest.task is not None:
            found.setdefault(way_of_tuning(entry), []).append(entry)
    return list(found.values())


def way_of_tuning(entry: Entry) -> tuple[Any, ...]:
    """What deltas must have in common so that one can speak for the others: all but the seed and the settings.

    The task with its labels and number of training rows, the methods and what they tune, and how long: one that was
    tuned to the end says nothing of one that was tuned for a few steps or on a few rows.
    """
    manifest, task = entry.manifest, entry.manifest.task
    methods = tuple(one.name for one in manifest.methods if not one.name.startswith("recycle/"))
    long = tuple(sorted(tuned_for(entry).items()))
    return (task.name if task else "", tuple(manifest.label_names), manifest.form, methods, long)


def look_further(*, shelf: Shelf, reference: str, made: str, reporter: Reporter | None = None) -> None:
    """Tune one delta on and write down what that gives; nothing where it is known, or the time for it is up.

    What keeps it from being tuned (no training rows, bad files) is told and no error: the upgrade is complete without.

    Args:
        reference: of the outdated delta.
        made: of what was taken for it.
    """
    entry, taken, say = shelf.entry(reference), shelf.entry(made), (reporter or Silent()).say
    if known(shelf, taken) is not None:
        return
    if shelf.time_is_up(seconds_for(entry, STEP)):
        say(f"{reference}: the budget leaves no time to look for headroom")
        return
    try:
        sample = shelf.sample(entry)
        task = shelf.training_task(entry, sample)
        if task is None:
            say(f"{reference}: no training rows, so that its headroom stays unknown")
            return
        found = _tuned_on(shelf, entry, taken, sample, task, reporter or Silent())
    except InterruptedRunError:
        raise
    except BROKEN as problem:
        if isinstance(problem.__cause__, OSError):
            raise
        say(f"{reference}: its headroom stays unknown: {told(problem)}")
        return
    write_atomic(_path(shelf, taken), json.dumps(asdict(found), indent=1, ensure_ascii=False).encode())


def known(shelf: Shelf, taken: Entry) -> Headroom | None:
    """What was written down of a delta's headroom, or stands in the manifest of what the upgrade took for it."""
    with suppress(OSError, ValueError, TypeError):
        stored = (taken.manifest.decision or {}).get("headroom")
        if stored is None:
            return Headroom(**json.loads(_path(shelf, taken).read_text(encoding="utf-8")))
        return Headroom(**{key: value for key, value in dict(stored).items() if key != "more"})
    return None


def marked(shelf: Shelf, taken: Entry, found: Headroom) -> Entry:
    """What was taken for a delta, with what its task's headroom means for it in its manifest."""
    record = dict(taken.manifest.decision or {})
    metric, own = str(record["metric"]), record["score"]
    more = can_do_more(found, own, metric, shelf.tolerance)
    record["headroom"] = {**asdict(found), "more": told_of(found, own) if more else ""}
    return shelf.store.update(taken, decision=record)


def told_of(found: Headroom, own: float) -> str:
    """A sentence on a delta that stands below what its task's headroom shows."""
    return (
        f"tuned on for {found.step} steps from its old weights, {found.probe} scores {found.score:.4g} "
        f"on the new base, and what was taken here {own:.4g}"
    )


def _tuned_on(shelf: Shelf, entry: Entry, taken: Entry, sample: Task, task: Task, reporter: Reporter) -> Headroom:
    began, count = time.perf_counter(), steps_for(entry, STEP)
    [run] = recycle(
        entry, shelf.new_base, old_base=shelf.old_base, method=STEP, task=task, store=shelf.attempts_store,
        training={"steps": count, "evaluate_every": max(1, count // LOOKS), "keep": "best"},
        keep_sample=False, reporter=reporter,
    )  # fmt: skip
    best, own = run.score(), (taken.manifest.decision or {}).get("score")
    if run.manifest.failed or best is None or own is None:
        raise DeltaError(run.manifest.failed or "it has no score")
    bench, base = Bench(shelf), shelf.new_base
    scorer = bench.scorer(base, entry, sample)
    [first, second] = [bench.answers(base, load_delta(one), entry, scorer)[1] for one in (run, taken)]

    def gained(kept: np.ndarray) -> float | None:
        one, other = scorer.among(first, kept), scorer.among(second, kept)
        return None if one is None or other is None else one - other

    error = jackknife_error(gained, len(sample.validation))
    return Headroom(
        probe=entry.reference, score=best, taken=own, error=error if math.isfinite(error) else None,
        step=run.manifest.best_step, steps=run.manifest.steps, seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip


def _path(shelf: Shelf, taken: Entry) -> Path:
    return shelf.work / PLACE / f"{taken.id[:32]}.json"
