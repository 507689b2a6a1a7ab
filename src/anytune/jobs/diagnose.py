"""Look before you recycle: how far an upgrade moved a base, and what that does to what was tuned on it.

``anytune diagnose OLD NEW`` compares two versions of a base; with deltas it says what each would do on the new one as
it is; with texts it looks at answers, attention and the line between the models; with labels at scores as well.
Nothing is trained and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import make_runtime
from anytune.errors import AnytuneError, DataError, DeltaError, SettingsError
from anytune.evaluate.base_distance import BaseDistance, base_distance
from anytune.evaluate.direct_forecast import FLOOR, Forecaster, shipped
from anytune.jobs.diagnose_delta import (
    ATTENTION_TEXTS,
    DeltaDiagnosis,
    Looking,
    Rows,
    diagnose_delta,
    labelled,
    unreadable,
)
from anytune.jobs.load import store_for, text_examples
from anytune.jobs.opening import DEFAULT_STORE, base_of_delta, open_base, open_delta, open_store, open_task
from anytune.jobs.outdated import Moving
from anytune.jobs.recycle import check_labels, known_columns
from anytune.jobs.stored_sample import KEPT_ROWS, chosen_rows, read_sample
from anytune.jobs.tune import Source
from anytune.models.base import Base
from anytune.models.interpolation import POINTS
from anytune.store import Entry, Store


@dataclass(frozen=True)
class Diagnosis:
    """Two versions of a base, and deltas of the old one.

    Attributes:
        old, new: what the bases are called.
        distance: how far they are apart.
        deltas: one for each delta, in the order given.
        forecast_source: what the forecasts were learned from.
    """

    old: str
    new: str
    distance: BaseDistance
    deltas: tuple[DeltaDiagnosis, ...]
    forecast_source: str

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: what ``--json`` prints and the page is made of."""
        return {
            "old": self.old, "new": self.new, "distance": self.distance.record(),
            "deltas": [one.record() for one in self.deltas], "forecast_source": self.forecast_source,
        }  # fmt: skip


def diagnose(
    old: Base | Entry | Source,
    new: Base | Entry | Source,
    *,
    delta: Entry | Source | Sequence[Entry | Source] = (),
    task: Task | Source | None = None,
    texts: Iterable[Any] | None = None,
    fresh: Entry | Source | None = None,
    store: Store | Source | None = None,
    points: int = POINTS,
    rows: int = KEPT_ROWS,
    attention_texts: int = ATTENTION_TEXTS,
    batch_size: int = 64,
    tolerance: float = FLOOR,
    forecaster: Forecaster | None = None,
    reporter: Reporter | None = None,
    **columns: Any,
) -> Diagnosis:
    """Compare two versions of a base, and say what deltas of the old one would do on the new one.

    Args:
        old, new: the bases: ``sample:NAME``, a folder, a name in the store, or a hub id.
        delta: one delta of the old base or several.
        task: labelled data of the deltas' task; its validation rows are read, never its test rows. Default: the rows
            stored beside each delta, if any.
        texts: texts without labels (or pairs), in place of a task: answers that change are counted, scores are not.
        fresh: a delta of the same task tuned on the new base: the path then ends there, and not at direct reuse.
        points: of the path, both ends included; 0 leaves it out.
        rows: texts that are read, at most.
        attention_texts: of these, texts whose attention is compared; 0 leaves that out.
        tolerance: the loss that is put up with, as a share (0.01 is one point).
        forecaster: fitted on reuses of your own (default: the one that comes with anytune).
        columns: how the task's data are read (see ``data.tasks.load_task``).

    Raises:
        WrongBaseError: a delta is not one of ``old``, or ``fresh`` not one of ``new``.
        DataError: task and texts are both given, or the task's labels are not a delta's.
        BaseError, StoreError, DeltaError: something is not there or damaged. Of several deltas, one whose weights are
            damaged does not end the others: its diagnosis says so.
    """
    if task is not None and texts is not None:
        raise DataError("a task and texts are given", why="One place to take texts from.", fix="--task FILE alone")
    if points not in (0,) and points < 2:
        raise SettingsError(f"points = {points}", why="A path has both its ends.", fix=f"--points {POINTS}, or 0")
    if rows < 1:
        raise SettingsError(f"rows = {rows}", why="There is nothing to read.", fix=f"--rows {KEPT_ROWS}")
    tell = reporter or Silent()
    given = [delta] if isinstance(delta, (Entry, str, Path)) else list(delta)
    place = _store_of(given, store)
    before, after = open_base(old, place), open_base(new, place)
    entries = [open_delta(one, place) for one in given] if place is not None else []
    for entry in entries:
        assert place is not None
        base_of_delta(entry, place, before)  # refused before anything is computed
    beside = _fresh(fresh, entries, after, place) if fresh is not None else None
    tell.say(f"distance: {before.name} to {after.name}")
    distance = base_distance(before, after)
    how = Looking(
        store=place, runtime=make_runtime("fp32"), points=points, attention_texts=attention_texts,
        batch_size=batch_size, tolerance=tolerance, forecaster=forecaster or shipped(),
    )  # fmt: skip
    kept = list(texts) if texts is not None else None
    found = []
    for entry in entries:
        tell.say(f"delta: {entry.reference}")
        read = _rows_of(entry, task, kept, rows, columns)
        matching = beside if beside is not None and _same_task(entry, beside) else None
        try:
            found.append(diagnose_delta(Moving(entry, before, after), read, distance, matching, how))
        except DeltaError as problem:
            if len(entries) == 1:
                raise
            tell.say(f"{problem.what}; the other deltas go on")
            found.append(unreadable(entry, problem))
    return Diagnosis(before.name, after.name, distance, tuple(found), how.forecaster.source)


def _rows_of(
    entry: Entry, task: Task | Source | None, texts: Sequence[Any] | None, limit: int, columns: Mapping[str, Any]
) -> Rows | None:
    """Rows to look at a delta with: those given, or those stored beside it, or its sample's; None without any."""
    manifest = entry.manifest
    if texts is not None:
        kind = manifest.task.kind if manifest.task else "classification"
        return Rows(tuple(text_examples(texts, kind)[:limit]), None, "texts")
    if task is not None:
        data = open_task(task, **{**known_columns(manifest), **columns})
        check_labels(manifest, data)
        return labelled(data, chosen_rows(data.validation, data.kind, limit), data.name)
    kept = read_sample(entry)
    if kept is not None:
        return labelled(kept, chosen_rows(kept.validation, kept.kind, limit), "stored sample")
    if manifest.task is None or manifest.task.ref is None:
        return None
    try:
        data = open_task(manifest.task.ref, **{**known_columns(manifest), **columns})
    except AnytuneError:  # it is not here, and nobody asked for it: weights are looked at all the same
        return None
    return labelled(data, chosen_rows(data.validation, data.kind, limit), manifest.task.ref)


def _store_of(given: Sequence[Entry | Source], store: Store | Source | None) -> Store | None:
    """The store that is read; None where there is none and nothing asks for one. None is made."""
    if given:
        return store_for(given[0], store)
    return open_store(store, create=False) if store is not None or Path(DEFAULT_STORE).is_dir() else None


def _fresh(fresh: Entry | Source, entries: Sequence[Entry], new: Base, place: Store | None) -> Entry:
    """The delta at the other end of the paths: of the new base, and of the task of one of the deltas at least."""
    if place is None or not entries:
        raise DataError("--fresh is given and no --delta", why="It is the other end of a path that begins at a delta.")
    found = open_delta(fresh, place)
    base_of_delta(found, place, new)
    if not any(_same_task(entry, found) for entry in entries):
        raise DataError(
            f"'{found.reference}' answers with other labels than the deltas given",
            why="Between models of different tasks there is no path.",
            fix="--fresh a delta of the same task, tuned on the new base",
        )
    return found


def _same_task(entry: Entry, fresh: Entry) -> bool:
    """Whether two deltas answer the same question: kind and labels."""
    left, right = entry.manifest, fresh.manifest
    kinds = [one.task.kind if one.task else None for one in (left, right)]
    return kinds[0] == kinds[1] and left.label_names == right.label_names
