"""A shelf of deltas on its way from one base to another: what is known of each, and the rows it is scored by.

What is found out about a delta stands in a small file of its own below the upgrade's work folder, written whole after
each step; the runs of training steps stand in a store of their own beside these. So whatever kills an upgrade, the
same command goes on behind the last step that ended.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.errors import AnytuneError, DataError, StoreError
from anytune.jobs.opening import open_base, open_domain, open_store, open_task
from anytune.jobs.recycle import check_labels, known_columns
from anytune.jobs.stored_sample import bare_task, chosen_rows, read_sample
from anytune.jobs.upgrade_steps import Attempt
from anytune.manifests import write_atomic
from anytune.models.base import Base
from anytune.store import Entry, Store
from anytune.store.store import PLACES

#: Below the work folder: the store of the runs that were tried, and the files of what was found out.
ATTEMPTS, FOUND = "attempts", "deltas"


@dataclass
class Found:
    """What an upgrade has found out about one delta.

    Attributes:
        attempts: what was tried, the score on the old base ("old") first.
        fits: its weights can be put onto the new base.
        scales: its difference can be multiplied.
        problem: why nothing can be done with it.
        rows: hash of the held-out rows that it was scored on.
        lacking: why the training rows that somebody named cannot be had.
    """

    attempts: list[Attempt] = field(default_factory=list)
    fits: bool = True
    scales: bool = False
    problem: str | None = None
    rows: str = ""
    lacking: str | None = None

    def attempt(self, step: str) -> Attempt | None:
        """What came of a step."""
        return next((one for one in self.attempts if one.step == step), None)


@dataclass(kw_only=True)
class Shelf:
    """The deltas of one base on their way to another; what a worker is sent.

    Attributes:
        place: the store's folder.
        old, new: the bases: names, folders or ids (or bases, in one process).
        work: the upgrade's work folder.
        tolerance: the part of a score that may be lost.
        tasks: a task's or a delta's name -> its data.
        unlabelled: texts without labels.
        steps: the steps that are wanted; None for all.
        deadline: seconds since 1970 at which nothing more is begun, or None.
    """

    place: Path
    old: Any
    new: Any
    work: Path
    tolerance: float
    tasks: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Any = None
    steps: Collection[str] | None = None
    deadline: float | None = None

    @cached_property
    def store(self) -> Store:
        """The store, opened."""
        return open_store(self.place, create=False)

    @cached_property
    def old_base(self) -> Base:
        """The base the deltas were tuned on."""
        return open_base(self.old, self.store)

    @cached_property
    def new_base(self) -> Base:
        """The base they are to go to."""
        return open_base(self.new, self.store)

    @cached_property
    def attempts_store(self) -> Store:
        """Where the runs of training steps stand until one is chosen."""
        return Store(self.work / ATTEMPTS)

    def entry(self, reference: str) -> Entry:
        """A delta of the shelf, by the name of its folder: no other manifest is read."""
        return self.store.get(self.place / PLACES["delta"] / reference)

    def time_is_up(self, seconds: float = 0.0) -> bool:
        """Whether so much time is no longer left."""
        return self.deadline is not None and time.time() + seconds > self.deadline

    # ------------------------------------------------------------------ what is known of a delta

    def found(self, entry: Entry) -> Found:
        """What has been found out about a delta so far."""
        path = self._path(entry)
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(path.read_text(encoding="utf-8"))
            attempts = [Attempt(**{"score": None, **one}) for one in content["attempts"]]
            return Found(attempts, content.get("fits", True), content.get("scales", False), content.get("problem"),
                         content.get("rows", ""), content.get("lacking"))  # fmt: skip
        return Found()

    def note(self, entry: Entry, found: Found) -> None:
        """Write it down."""
        content = {"attempts": [one.record() for one in found.attempts], "fits": found.fits, "scales": found.scales,
                   "problem": found.problem, "rows": found.rows, "lacking": found.lacking}  # fmt: skip
        write_atomic(self._path(entry), json.dumps(content, indent=1, ensure_ascii=False).encode())

    def look_again(self, entry: Entry) -> None:
        """Forget what may be otherwise by now: files that could not be read, and scores on other held-out rows."""
        found = self.found(entry)
        if found.attempts and self._rows_changed(entry, found):
            self.note(entry, Found())
        elif found.problem is not None or found.lacking is not None:
            found.problem = found.lacking = None
            self.note(entry, found)

    def _rows_changed(self, entry: Entry, found: Found) -> bool:
        try:
            return bool(found.rows) and rows_hash(self.sample(entry)) != found.rows
        except AnytuneError:
            return False  # scored on rows that are gone: the scores stand

    def _path(self, entry: Entry) -> Path:
        return self.work / FOUND / f"{entry.id[:32] or entry.reference}.json"

    # ------------------------------------------------------------------ rows

    def source(self, entry: Entry) -> Any:
        """What the user or the manifest says the task's data are; None where neither does."""
        task = entry.manifest.task
        for name in (entry.reference, entry.name, task.name if task else ""):
            if name in self.tasks:
                return self.tasks[name]
        return task.ref if task else None

    def sample(self, entry: Entry) -> Task:
        """The held-out rows that decide, as a task's validation split.

        Raises:
            StoreError: none are stored, and no data are given to take them from.
        """
        stored = read_sample(entry)
        if stored is not None:
            return stored
        data = self.data(entry)
        if data is None:
            raise StoreError(
                f"'{entry.reference}' has no held-out rows beside it",
                why="It was tuned without them, and without any an upgrade can score nothing.",
                fix=f"--task {entry.manifest.task.name if entry.manifest.task else entry.name}=FILE",
            )
        return bare_task(entry.manifest).with_rows(validation=chosen_rows(data.validation, data.kind))

    def data(self, entry: Entry) -> Task | None:
        """The task's data, or None where nobody says where they are."""
        source = self.source(entry)
        if source is None:
            return None
        data = open_task(source) if isinstance(source, Task) else open_task(source, **known_columns(entry.manifest))
        check_labels(entry.manifest, data)
        return data

    def training_task(self, entry: Entry, sample: Task) -> Task | None:
        """The task's training rows beside the held-out rows that decide; None where there are none.

        The test split stays unread. A run scores one in any case, which beside a short tuning would cost as much
        again: the first held-out row stands there, and what it scores is thrown away.
        """
        data = self.data(entry)
        if data is None:
            return None
        held = {(row.text, row.text_pair) for row in sample.validation}
        train = [row for row in data.train if (row.text, row.text_pair) not in held]
        if not train:
            raise DataError(f"every training row of '{data.name}' is one of the held-out rows of '{entry.reference}'")
        return data.with_rows(train=train, validation=sample.validation, test=sample.validation[:1])

    def texts_beside(self, sample: Task) -> Any:
        """The texts without labels, less those among the held-out rows that decide."""
        texts = open_domain(self.unlabelled, heldout_fraction=0.0).texts
        held = {row.text.strip() for row in sample.validation}
        kept = [text for text in texts if text.strip() not in held]
        return self.unlabelled if len(kept) == len(texts) else kept


def rows_hash(sample: Task) -> str:
    """SHA-256 over the rows that decide, with their labels."""
    state = hashlib.sha256()
    for row in sample.validation:
        state.update(repr((row.text, row.text_pair, row.label, row.words)).encode("utf-8", "surrogatepass"))
    return state.hexdigest()
