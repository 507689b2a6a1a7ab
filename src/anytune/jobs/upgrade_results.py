"""What an upgrade gave: for each delta what was taken and why, and the shelf as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import StoreError
from anytune.jobs.opening import open_delta
from anytune.jobs.tune import Source
from anytune.jobs.upgrade_runs import without_folders
from anytune.jobs.upgrade_steps import Attempt, Decision
from anytune.models.base import Base
from anytune.store import Entry, Store


@dataclass(frozen=True)
class Outcome:
    """What an upgrade did with one delta.

    Attributes:
        delta: its reference in the store.
        decision: what was taken and why; None where there is a problem, or the budget ended before it was scored.
        attempts: all that was tried.
        made: reference of the artefact on the new base.
        problem: what is wrong with the delta.
        headroom: what tuning a delta of its task on gave, where that was asked for.
    """

    delta: str
    task: str = ""
    metric: str = ""
    method: str = ""
    seed: int = 0
    decision: Decision | None = None
    attempts: Sequence[Attempt] = ()
    made: str | None = None
    problem: str | None = None
    headroom: Mapping[str, Any] | None = None

    @property
    def flag(self) -> str:
        """Empty for brought back, "problem", "unseen" (the budget ended), or what the decision is flagged with."""
        if self.problem is not None:
            return "problem"
        return "unseen" if self.decision is None else self.decision.flag

    @property
    def more(self) -> str:
        """Why the new base can do more for it than bring its old score back; empty where nothing shows that."""
        return str(self.headroom["more"]) if self.headroom else ""

    @property
    def seconds(self) -> float:
        """What it cost; not what it took to look for headroom."""
        return round(sum(attempt.seconds for attempt in self.attempts), 3)

    def score(self, step: str) -> float | None:
        """The score of an attempt; "old" and "keep" are always made."""
        return next((attempt.score for attempt in self.attempts if attempt.step == step), None)

    def record(self) -> dict[str, Any]:
        """A line of the journal."""
        taken = self.decision
        return {
            "delta": self.delta, "task": self.task, "metric": self.metric, "method": self.method, "seed": self.seed,
            "flag": self.flag, "step": taken.step if taken else None, "score": taken.score if taken else None,
            "old": taken.old if taken else None, "direct": self.score("keep"), "goal": taken.goal if taken else None,
            "reason": taken.reason if taken else self.problem or "the budget ended before it was scored",
            "seconds": self.seconds, "attempts": [attempt.record() for attempt in self.attempts], "made": self.made,
            "problem": self.problem, "headroom": self.headroom,
        }  # fmt: skip


@dataclass(frozen=True)
class Upgrade:
    """A shelf before and after.

    Attributes:
        old, new: names of the bases.
        outcomes: one a delta, in the order of tasks.
        journal: the file of their records.
        page: the page of the shelf.
        seconds: of this and earlier calls of the same upgrade.
    """

    old: str
    new: str
    tolerance: float
    outcomes: Sequence[Outcome]
    journal: Path
    page: Path
    seconds: float

    @property
    def problems(self) -> list[Outcome]:
        """Deltas that could not be used."""
        return [one for one in self.outcomes if one.problem is not None]


def told_by(record: Mapping[str, Any]) -> dict[str, Any]:
    """Decision and attempts as a manifest tells them."""
    attempts = [Attempt(**{"score": None, **one}) for one in record["attempts"]]
    fields = ("step", "score", "old", "goal", "flag", "reason")
    return {"decision": Decision(**{name: record[name] for name in fields}), "attempts": attempts}


def reads_otherwise(entry: Entry, base: Base) -> bool:
    """Whether a delta of these weights was tuned with another tokenizer: then it is another base's."""
    own = entry.manifest.base.vocabulary
    return bool(own) and bool(base.identity.vocabulary) and own != base.identity.vocabulary


def shelf_of(
    store: Store, base: Base, deltas: Sequence[Entry | Source] | None = None
) -> tuple[list[Entry], list[Outcome]]:
    """The deltas of a base that have weights, those of one kind of head together; and what cannot be read at all.

    Raises:
        StoreError: there are none, or one that was named belongs to another base.
    """
    broken: list[Outcome] = []
    if deltas is None:
        found = [entry for entry in store.find("delta", base=base.identity)
                 if entry.manifest.form in ("full", "peft") and not entry.manifest.failed
                 and not reads_otherwise(entry, base)]  # fmt: skip
        folder = store.folder / "deltas"
        listed = {entry.folder for entry in store.find("delta")}
        broken = [Outcome(delta=path.name, problem=without_folders(reason)) for path, reason in store.problems()
                  if path.parent == folder and path not in listed and not reason.startswith("a copy of")]  # fmt: skip
    else:
        found = [open_delta(one, store) for one in deltas]
        for entry in found:
            if entry.folder.resolve().parent != (store.folder / "deltas").resolve():
                raise StoreError(
                    f"'{entry.reference}' is not in the store {store.folder}",
                    why="What becomes of it is stored beside it.",
                    fix=f"anytune upgrade {entry.folder.parent.parent} --delta {entry.reference} ...",
                )
            if entry.manifest.base.backbone != base.identity.backbone:
                raise StoreError(
                    f"'{entry.reference}' belongs to {entry.manifest.base.short}, not to {base.identity.short}",
                    why="An upgrade takes the deltas of one base to another.",
                    fix=f"--from {entry.manifest.base.name}",
                )
            if reads_otherwise(entry, base):
                raise StoreError(
                    f"'{entry.reference}' was tuned with another tokenizer than {base.identity.short} has",
                    why="The weights of the two bases are the same, and the token ids mean other words.",
                    fix="--from the base with the delta's own tokenizer",
                )
    if not found and not broken:
        raise StoreError(
            f"{store.folder} holds no delta of {base.identity.short}",
            why="There is nothing to upgrade.",
            fix=f"anytune store list --kind delta --store {store.folder}",
        )

    def order(entry: Entry) -> tuple[Any, ...]:
        task = entry.manifest.task
        return (task.kind if task else "", len(entry.manifest.label_names), task.name if task else "",
                entry.reference)  # fmt: skip

    return sorted(found, key=order), broken
