"""How the tasks of a library lie to each other: ``anytune transfer matrix``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import DataError, SettingsError, StoreError, unknown
from anytune.evaluate import transferability as measures
from anytune.evaluate.clustering import cluster_order
from anytune.evaluate.transferability.prompt_similarity import KINDS as PROMPT_KINDS
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.prompt_library import Candidate, candidates, one_per_task, prompts_of
from anytune.jobs.prompt_sources import References, given_prompts
from anytune.jobs.ranking_study import comparable, pooled_of
from anytune.jobs.task_features import ROWS
from anytune.jobs.transfer import check_choices, empty_library
from anytune.jobs.tune import Source
from anytune.models.base import Base
from anytune.report.transfer_charts import write_matrix
from anytune.store import Entry, Store

#: Measures that compare two tasks by what is stored of them alone.
STORED = ("task_cosine", "neuron_overlap", "tfidf", *(f"prompt_{kind}" for kind in PROMPT_KINDS))


@dataclass(frozen=True)
class Matrix:
    """How the tasks of a library lie to each other; ``order`` puts clusters side by side.

    Attributes:
        tasks: names of the tasks; row and column i are ``tasks[i]``.
        values: [K, K], NaN where two cannot be compared.
        left_out: reference -> why.
    """

    base: str
    metric: str
    tasks: Sequence[str]
    references: Sequence[str]
    values: np.ndarray
    order: Sequence[int]
    left_out: Mapping[str, str]

    def write(self, folder: str | Path, *, figures: bool = False) -> list[Path]:
        """Write ``METRIC.csv`` and ``METRIC.svg`` (a picture that needs nothing), with ``figures`` PNG and SVG."""
        return write_matrix(self, Path(folder), figures=figures)

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = [[None if np.isnan(value) else value for value in row] for row in self.values.tolist()]
        return {"base": self.base, "metric": self.metric, "tasks": list(self.tasks),
                "sources": list(self.references), "values": values, "order": list(self.order),
                "left_out": dict(self.left_out)}  # fmt: skip

    def __str__(self) -> str:
        return f"{self.metric} of {len(self.tasks)} tasks on {self.base}"


def matrix(
    base: Base | Entry | Source,
    *,
    store: Store | Source | None = None,
    metric: str = "task_cosine",
    sources: References | None = None,
    every: bool = False,
    pooling: str = "mean",
    centring: str = "none",
) -> Matrix:
    """Compare all tasks of a library with each other, by what is stored of them.

    Args:
        metric: of :data:`STORED`; the others need the texts of a task, see :func:`rank`.
        sources: these prompts alone; by default of each task the one that validates best.
        every: all prompts, several of one task too.

    Raises:
        StoreError: fewer than two prompts can be compared.
        SettingsError: a measure that needs more than what is stored.
    """
    place = open_store(store)
    opened = open_base(base, place)
    if metric not in STORED:
        raise unknown("measure of what is stored", metric, STORED, SettingsError)
    check_choices(ROWS, pooling, centring)
    given = [one.entry for one in given_prompts(sources, opened, place)]
    there = given or prompts_of(place, opened)
    if not there:
        raise empty_library(place, opened)
    found, unusable = candidates(there if given or every else one_per_task(there), opened, None)
    left_out = {f"unusable {number}": what for number, what in enumerate(unusable, 1)}
    needs_features = not metric.startswith("prompt_")
    kept = [one for one in found if one.features is not None or not needs_features]
    left_out |= {one.entry.reference: one.missing for one in found if one not in kept}
    if len(kept) < 2:
        raise StoreError(
            f"{len(kept)} prompt of base {opened.identity.short} can be compared", why="A matrix needs two.",
            fix="anytune tune BASE TASK --method prompt_tuning",
        )  # fmt: skip
    values = _compared(kept, metric, pooling, centring)
    names = [one.name if [other.name for other in kept].count(one.name) == 1 else one.entry.reference for one in kept]
    return Matrix(
        opened.name, metric, names, [one.entry.reference for one in kept], values, cluster_order(values), left_out
    )


def _compared(found: Sequence[Candidate], metric: str, pooling: str, centring: str) -> np.ndarray:
    features: list[Any] = [one.features for one in found]
    if metric == "task_cosine":
        base = np.stack([pooled_of(one.plain, pooling) for one in features]) if centring == "base" else None
        rows = np.stack([pooled_of(one.embedding, pooling) for one in features])
        return measures.task_cosines(measures.centred(rows, centring, base))  # type: ignore[arg-type]
    if metric == "tfidf":
        words = [one.words for one in features]
        return measures.tfidf_cosines(words, words)
    table = np.full((len(found), len(found)), np.nan)
    for row, one in enumerate(found):
        for column, other in enumerate(found):
            try:
                if metric == "neuron_overlap":
                    sides = (features[row].neurons, features[column].neurons)
                    if sides[0] is None or sides[1] is None:
                        continue
                    table[row, column] = measures.overlap(*sides)
                else:
                    kind = PROMPT_KINDS[metric.removeprefix("prompt_")]
                    table[row, column] = kind(comparable(one, other.prompt), other.prompt.values)
            except DataError:  # other lengths or kinds: such a pair stays empty
                continue
    return table
