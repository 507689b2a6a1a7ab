"""Arms over tasks and training sizes, from the lines of a ``runs.jsonl`` alone: pure functions on plain values.

A line is one run: ``task``, ``metric``, ``size`` (None: the whole task), ``arm``, ``control``, ``seed``,
``validation`` and ``test`` (raw, in the metric; None if the run diverged), ``floor``, ``ood``, ``probe`` and
``probe_base`` (name -> raw score), ``probe_metrics`` (name -> metric), ``steps``, ``seconds``, ``failed``,
``predictions``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anytune.evaluate.compare import unit
from anytune.evaluate.scores import higher_is_better, number
from anytune.evaluate.stability import Against, Arm, Stability, across_tasks, against_control, stability

Line = Mapping[str, Any]
#: The row that stands for the base before any tuning, in tables of probes.
UNTOUCHED = "untouched base"


@dataclass(frozen=True)
class Column:
    """Scores of all arms in one respect: on one task, or on one other task after tuning on it.

    Attributes:
        name: what a table calls it.
        arms: arm -> seed -> score in the unit of the reader; None for a run that diverged.
        floor: what always giving one answer scores; None where that is not asked or not known.
        words: what words alone score (TF-IDF and ridge); None likewise.
        source: the task whose runs are scored, where it is another: columns of one source are scores of the same runs.
    """

    name: str
    metric: str
    arms: Mapping[str, Arm]
    floor: float | None = None
    words: float | None = None
    source: str | None = None

    @property
    def higher(self) -> bool:
        """Whether a larger score is the better one."""
        return higher_is_better(self.metric)

    @property
    def signed_floor(self) -> float | None:
        """The floor, signed as in :meth:`signed`."""
        return self.floor if self.floor is None or self.higher else -self.floor

    def signed(self) -> dict[str, Arm]:
        """The arms with better scores higher."""
        if self.higher:
            return dict(self.arms)
        return {
            name: {seed: None if value is None else -value for seed, value in arm.items()}
            for name, arm in self.arms.items()
        }


@dataclass(frozen=True)
class Section:
    """Columns of one training size that are read together, and every arm against the control in and over them."""

    #: None: the whole of each task
    size: int | None
    columns: Sequence[Column]
    control: str

    @property
    def title(self) -> str:
        """``"100 training examples"``."""
        return "all training examples" if self.size is None else f"{self.size} training examples"

    @cached_property
    def rows(self) -> list[str]:
        """The arms, in the order of the recipe."""
        return list(dict.fromkeys(name for column in self.columns for name in column.arms))

    def cell(self, arm: str, column: Column) -> Stability | None:
        """An arm's runs in a column."""
        return stability(column.arms.get(arm, {}), column.floor, higher=column.higher)

    @cached_property
    def differences(self) -> dict[str, dict[str, Against]]:
        """Column name -> arm -> its difference to the control."""
        return {
            column.name: against_control(column.signed(), self.control, floor=column.signed_floor)
            for column in self.columns
            if self.control in column.arms
        }

    @cached_property
    def overall(self) -> dict[str, Against]:
        """Arm -> its difference to the control over all columns; only where all are in points."""
        if len({unit(column.metric) for column in self.columns}) != 1:
            return {}
        return across_tasks(
            [column.signed() for column in self.columns], self.control,
            floors=[column.signed_floor for column in self.columns],
            groups=[column.source or column.name for column in self.columns],
        )  # fmt: skip


def sections(lines: Iterable[Line], kind: str = "test") -> list[Section]:
    """One section for each training size with any column of a kind.

    Args:
        kind: "test"; "ood", the scores on other tasks; "probe", the probes over the frozen bodies, the untouched
            base's own beside them as the arm :data:`UNTOUCHED`.
    """
    lines = list(lines)
    make = {"test": _test_columns, "ood": _ood_columns, "probe": _probe_columns}[kind]
    made = []
    for size in sorted({line["size"] for line in lines}, key=lambda size: (size is None, size)):
        own = [line for line in lines if line["size"] == size]
        columns = make(own)
        if columns:
            made.append(Section(size, columns, own[0]["control"]))
    return made


def cost(lines: Iterable[Line], size: int | None) -> dict[str, float]:
    """Arm -> seconds of training as a multiple of the control's, the mean over tasks of the ratio of mean seconds."""
    spent: dict[tuple[str, str], list[float]] = {}
    control = ""
    for line in lines:
        if line["size"] == size and not line["failed"]:
            control = line["control"]
            spent.setdefault((line["arm"], line["task"]), []).append(float(line["seconds"]))
    ratios: dict[str, list[float]] = {}
    for (arm, task), seconds in spent.items():
        beside = np.mean(spent.get((control, task), [0.0]))
        if beside > 0:
            ratios.setdefault(arm, []).append(float(np.mean(seconds) / beside))
    return {arm: float(np.mean(found)) for arm, found in ratios.items()}


def failures(lines: Iterable[Line]) -> list[str]:
    """What happened to the runs that diverged."""
    return [
        f"{line['arm']}, {line['task']}, {line['size'] or 'all'} examples, seed {line['seed']}: {line['failed']}"
        for line in lines
        if line["failed"]
    ]


def _columns(
    lines: Sequence[Line], name: Callable[[Line], Iterable[tuple[str, str, Any]]]
) -> dict[str, tuple[str, dict[str, dict[Any, float | None]]]]:
    """Column name -> (metric, arm -> seed -> score); ``name`` gives a line's (column, metric, raw score)s."""
    found: dict[str, tuple[str, dict[str, dict[Any, float | None]]]] = {}
    for line in lines:
        for column, metric, raw in name(line):
            _, arms = found.setdefault(column, (metric, {}))
            value = number(raw)
            arms.setdefault(line["arm"], {})[line["seed"]] = None if value is None else value * unit(metric)
    return found


def _test_columns(lines: Sequence[Line]) -> list[Column]:
    floors, words = task_means(lines, "floor"), task_means(lines, "words")
    found = _columns(lines, lambda line: [(line["task"], line["metric"], line["test"])])
    return [Column(name, metric, arms, floors.get(name), words.get(name)) for name, (metric, arms) in found.items()]


def task_means(lines: Iterable[Line], key: str) -> dict[str, float]:
    """Task -> mean over its lines of a raw score, in the unit of the reader; tasks without one are left out."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line.get(key) is not None:
            found.setdefault(line["task"], []).append(line[key] * unit(line["metric"]))
    return {task: float(np.mean(values)) for task, values in found.items()}


def _ood_columns(lines: Sequence[Line]) -> list[Column]:
    def named(line: Line) -> list[tuple[str, str, Any]]:
        return [(f"{line['task']} -> {other}", line["metric"], value) for other, value in line["ood"].items()]

    return [
        Column(name, metric, arms, source=name.partition(" -> ")[0])
        for name, (metric, arms) in _columns(lines, named).items()
    ]


def _probe_columns(lines: Sequence[Line]) -> list[Column]:
    def named(line: Line) -> list[tuple[str, str, Any]]:
        metrics = line["probe_metrics"]
        return [
            (f"{line['task']}, probed on {other}", metrics[other], value) for other, value in line["probe"].items()
        ]

    made = []
    for name, (metric, arms) in _columns(lines, named).items():
        task, _, other = name.rpartition(", probed on ")
        base = {
            line["seed"]: line["probe_base"][other] * unit(metric)
            for line in lines
            if line["task"] == task and other in line["probe_base"]
        }
        made.append(Column(name, metric, {**arms, **({UNTOUCHED: base} if base else {})}, source=task))
    return made
