"""What a ranking of stored prompts says, and how it is written: plain values, no model."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import SettingsError, unknown
from anytune.evaluate.transferability import MEASURES
from anytune.manifests import write_atomic
from anytune.store import Entry

#: Which measure ranks where nobody says: the first that could be computed for most candidates.
PREFERRED = ("logme", "task_cosine", "linear_probe", "tfidf", "size")


@dataclass(frozen=True)
class Ranked:
    """A prompt of the library and its scores for a task; better is higher in every measure.

    Attributes:
        task: name of the task it was tuned on.
        scores: measure -> value, None where it could not be computed.
        rank: from 1, by the measure of the ranking; None where that has no value.
        family: its task is over (in part) the same texts.
        size: training rows it was tuned on.
    """

    entry: Entry
    task: str
    scores: Mapping[str, float | None]
    rank: int | None
    family: bool
    size: int

    @property
    def reference(self) -> str:
        """What to type to mean it."""
        return self.entry.reference

    @property
    def similarity(self) -> float | None:
        """The task cosine, rounded so that it names a run for good; None where it could not be computed."""
        value = self.scores.get("task_cosine")
        return None if value is None else round(value, 4)


@dataclass(frozen=True)
class Measured:
    """One measure over all candidates: what it needs, what it took, and why it could not be computed."""

    name: str
    needs: tuple[str, ...]
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Ranking:
    """The prompts of a library for a task, best first. As text, its table.

    Attributes:
        metric: the measure that ranks.
        rows: texts of the task that were read, drawn by ``seed``.
        left_out: reference -> why: prompts of the task itself, and those that cannot be used.
        seconds: of all of it; ``reading`` those of reading the texts with every prompt.
    """

    task: str
    base: str
    metric: str
    ranked: Sequence[Ranked]
    measures: Sequence[Measured]
    left_out: Mapping[str, str]
    rows: int
    seed: int
    seconds: float
    reading: float = 0.0

    def top(self, count: int) -> list[Ranked]:
        """The first so many."""
        return list(self.ranked[:count])

    def scores(self, metric: str) -> dict[str, float]:
        """Task of the source -> its score in a measure, those without one left out."""
        return {one.task: value for one in self.ranked if (value := one.scores.get(metric)) is not None}

    @property
    def shown(self) -> list[str]:
        """The measures that gave any number, the one that ranks first."""
        found = [one.name for one in self.measures if any(row.scores.get(one.name) is not None for row in self.ranked)]
        return sorted(found, key=lambda name: name != self.metric)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows for a terminal."""
        head = ["rank", "source", "task", "rows", *self.shown, "note"]
        rows: list[list[Any]] = []
        for one in self.ranked:
            rows.append([
                one.rank, one.reference, one.task, one.size, *(_number(one.scores.get(name)) for name in self.shown),
                "same texts" if one.family else None,
            ])  # fmt: skip
        return head, rows

    def costs(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of what each measure needs and took."""
        first = ["(reading the texts)", None, f"{self.reading:.2f}", None]
        return ["measure", "needs", "seconds", "note"], [
            *([first] if self.reading >= 0.005 else []),
            *([one.name, ", ".join(one.needs) or "nothing", f"{one.seconds:.2f}", one.problem or None]
              for one in self.measures),
        ]  # fmt: skip

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "task": self.task, "base": self.base, "metric": self.metric, "rows": self.rows, "seed": self.seed,
            "seconds": round(self.seconds, 3), "reading": round(self.reading, 3),
            "ranking": [
                {"rank": one.rank, "source": one.reference, "task": one.task, "size": one.size, "family": one.family,
                 "scores": dict(one.scores)} for one in self.ranked
            ],
            "measures": [
                {"name": one.name, "needs": list(one.needs), "seconds": round(one.seconds, 3),
                 "problem": one.problem or None} for one in self.measures
            ],
            "left_out": dict(self.left_out),
        }  # fmt: skip

    def to_csv(self, path: str | Path) -> Path:
        """Write the table: rank, source, task, size, family, and every measure."""
        names = [one.name for one in self.measures]
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["rank", "source", "task", "size", "family", *names])
        for one in self.ranked:
            values = [one.scores.get(name) for name in names]
            table.writerow([one.rank, one.reference, one.task, one.size, int(one.family),
                            *("" if value is None else repr(value) for value in values)])  # fmt: skip
        write_atomic(Path(path), out.getvalue().encode())
        return Path(path)

    def __str__(self) -> str:
        head, rows = self.table()
        lines = [" ".join(str(value) if value is not None else "-" for value in row) for row in [head, *rows]]
        return "\n".join(lines)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def check_measures(names: Sequence[str] | None, metric: str | None = None) -> list[str]:
    """Names of measures, each known and once; all where none is given.

    Raises:
        SettingsError: an unknown one, one twice, or none.
    """
    given = list(MEASURES) if names is None else list(names)
    chosen = [*given, *([metric] if metric and metric not in given else [])]
    for name in chosen:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES, SettingsError)
    if not chosen or len(set(chosen)) != len(chosen):
        raise SettingsError(f"measures = {given}", why="Each once, and at least one.", fix="logme, size, random")
    return chosen


def ranked(found: Sequence[Ranked], metric: str) -> list[Ranked]:
    """In the order of a measure; equal scores share a rank, those without one come last."""

    def value(one: Ranked) -> float:
        score = one.scores.get(metric)
        return -math.inf if score is None or math.isnan(score) else score

    order = sorted(found, key=lambda one: (-value(one), one.task, one.reference))
    values = np.array([value(one) for one in order])
    places = [None if one == -math.inf else int((values > one).sum()) + 1 for one in values]
    return [replace(one, rank=place) for one, place in zip(order, places, strict=True)]
