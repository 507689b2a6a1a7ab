"""The runs of one command, and what they say: mean, spread, worst, failed runs, and the difference to a control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anytune.data.tasks import Task
from anytune.evaluate.compare import unit
from anytune.evaluate.scores import higher_is_better
from anytune.evaluate.stability import Against, Arm, Stability, against_control, stability
from anytune.evaluate.words import answers_by_words
from anytune.metrics import score
from anytune.store import Entry

#: Training examples beyond which words alone are not asked: the ridge is solved over all pairs of them.
MOST_FOR_WORDS = 4000


class Runs(list[Entry]):
    """The store entries of one command's runs, by size and seed.

    Attributes:
        control: the runs of the control: of ``against``, or of plain training if the store holds them.
        floors: content of the task as runs saw it -> :func:`floor_of` it.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), control: Iterable[Entry] = (),
        floors: Mapping[str, float | None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(entries)
        self.control, self.floors = list(control), dict(floors or {})

    def summaries(self) -> list[Summary]:
        """One for each training size, in the order of the runs; scores of test, in the unit of the reader."""
        sizes = dict.fromkeys(_size(entry) for entry in self)
        return [
            self._summary(size, *([entry for entry in side if _size(entry) == size] for side in (self, self.control)))
            for size in sizes
        ]

    def _summary(self, size: int, own: Sequence[Entry], control: Sequence[Entry]) -> Summary:
        metric = own[0].main_metric() or "accuracy"
        higher, scale = higher_is_better(metric), unit(metric)
        floors = [self.floors.get(_content(entry)) for entry in own]
        known = [floor * scale for floor in floors if floor is not None]
        floor = float(np.mean(known)) if known else None  # runs that drew their own rows have floors of their own
        arms = {"own": _arm(own, scale), "control": _arm(control, scale)}
        both = arms["own"].keys() & arms["control"].keys()
        compared = against_control(
            {name: signed(arm, higher) for name, arm in arms.items()}, "control",
            floor=floor if higher or floor is None else -floor,
        ) if both else {}  # fmt: skip
        found = stability(arms["own"], floor, higher=higher)
        assert found is not None
        return Summary(
            method=_method(own[0]), size=size, metric=metric, floor=floor, runs=found,
            failed=tuple(entry.manifest.failed for entry in own if entry.manifest.failed),
            control=_method(control[0]) if control else None,
            control_runs=stability(arms["control"], floor, higher=higher),
            against=compared.get("own"),
        )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """The runs of one size; ``against`` is signed so that above 0 is better, whatever the metric."""

    method: str
    size: int
    metric: str
    floor: float | None
    runs: Stability
    #: what happened to the runs that diverged
    failed: tuple[str, ...]
    control: str | None
    control_runs: Stability | None
    against: Against | None

    @property
    def scaled(self) -> bool:
        """Whether scores are points, 100 times the metric."""
        return unit(self.metric) != 1.0

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def signed(arm: Arm, higher: bool) -> dict[Any, float | None]:
    """An arm whose scores are better when higher."""
    return {run: value if value is None or higher else -value for run, value in arm.items()}


def floor_of(task: Task) -> float | None:
    """The test score, in the task's metric, of always giving one answer; None for generation.

    The answer is the commonest training label or tag, or the mean of the training numbers.
    """
    if task.kind == "generation":
        return None
    names = task.label_names
    if task.kind == "regression":
        mean = float(np.mean([float(row.label) for row in task.train]))  # type: ignore[arg-type]
        found = score(task.metric, [mean] * len(task.test), [row.label for row in task.test])
    elif task.kind == "token-classification":
        tag = Counter(tag for row in task.train for tag in row.label).most_common(1)[0][0]  # type: ignore[union-attr]
        gold: list[Any] = [list(row.label) for row in task.test]  # type: ignore[arg-type]
        found = score(task.metric, [[tag] * len(tags) for tags in gold], gold, label_names=names)
    else:
        label = Counter(row.label for row in task.train).most_common(1)[0][0]
        found = score(task.metric, [label] * len(task.test), [row.label for row in task.test], len(names))
    return found[task.metric]


def words_floor(task: Task) -> float | None:
    """The test score, in the task's metric, of words alone (:mod:`anytune.evaluate.words`).

    None for kinds without one label a text, and for tasks so large that the answer would take minutes.
    """
    classes = len(task.label_names) if task.kind == "classification" else None
    if task.kind not in ("classification", "regression") or len(task.train) > MOST_FOR_WORDS:
        return None

    def rated(predicted: Any, gold: Any) -> Mapping[str, float | None]:
        return score(task.metric, list(predicted), list(gold), *(() if classes is None else (classes,)))

    def better(predicted: np.ndarray, gold: np.ndarray) -> float:
        value = rated(predicted.tolist(), gold.tolist())[task.metric]
        return -np.inf if value is None else value if higher_is_better(task.metric) else -value

    sides = [
        ([f"{row.text} {row.text_pair or ''}" for row in rows], np.array([row.label for row in rows]))
        for rows in (task.train, task.validation, task.test)
    ]
    predicted = answers_by_words(sides[0], sides[1], sides[2][0], classes=classes, better=better)
    return rated(predicted.tolist(), sides[2][1].tolist())[task.metric]


def _arm(entries: Sequence[Entry], scale: float) -> dict[int, float | None]:
    scores = {entry.manifest.seed: entry.score("test") for entry in entries}
    return {seed: None if value is None else value * scale for seed, value in scores.items()}


def _size(entry: Entry) -> int:
    return entry.manifest.task.counts.get("train", 0) if entry.manifest.task else 0


def _content(entry: Entry) -> str:
    return entry.manifest.task.content if entry.manifest.task else ""


def _method(entry: Entry) -> str:
    return "+".join(record.name.rpartition("/")[2] for record in entry.manifest.methods) or "none"
