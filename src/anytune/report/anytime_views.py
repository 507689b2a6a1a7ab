"""What the figures of anytime matrices show, as plain values from their lines alone; drawn in two other files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anytune.evaluate.anytime import (
    AccuracyMatrix,
    Column,
    Line,
    RunName,
    columns,
    matrices,
    mean_matrix,
)
from anytune.evaluate.anytime_losses import loss_matrices
from anytune.report.anytime_tables import arm_order, of_orders
from anytune.report.arms import Look

#: Colour slots, dashes and shapes in turn: seven arms differ in all three, further ones in colour and shape together.
_DASHES = ("", "6 4", "9 3 2 3", "1.5 4", "12 4", "4 2", "8 2 2 2 2 2")
_SHAPES = ("circle", "square", "triangle", "diamond", "cross", "down", "pentagon")


def arm_looks(arms: Sequence[str]) -> dict[str, Look]:
    """How each arm looks, by its place."""
    return {
        arm: Look(place % 7, _DASHES[place % 7], _SHAPES[(place + place // 7) % 7]) for place, arm in enumerate(arms)
    }


@dataclass(frozen=True)
class Heat:
    """A matrix as a picture: mean over seeds, less row 0 (``gains``) or as it is where row 0 was not measured."""

    arm: str
    order: int
    seeds: int
    gains: bool
    domains: tuple[str, ...]
    #: [stage - 1][task - 1]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def largest(self) -> float:
        """The largest value without its sign, for the scale."""
        return max((abs(value) for row in self.values for value in row if value is not None), default=0.0)


@dataclass(frozen=True)
class Point:
    """An arm where its adaptation is measured to the right and its generalisation upwards.

    The control stands at its mean over runs, and an arm as far from it as over the runs that both have, so that an arm
    with fewer streams is not moved by which they are. ``a_ends`` and ``o_ends`` are the smallest and the largest of
    these differences.
    """

    arm: str
    runs: int
    a: float
    o: float
    a_ends: tuple[float, float]
    o_ends: tuple[float, float]


@dataclass(frozen=True)
class Path:
    """An arm over the stages: (stage, mean gain over row 0, lowest run, highest run)."""

    arm: str
    #: "own": the domain of the stage; "unseen": those that have not come yet; "seen": those before
    kind: str
    points: tuple[tuple[int, float, float, float], ...]


@dataclass(frozen=True)
class Bar:
    """A metric of an arm beside those of the others: mean over runs and the sample standard deviation."""

    metric: str
    arm: str
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Views:
    """All of them; ``looks`` says how an arm is drawn."""

    looks: Mapping[str, Look]
    heats: Sequence[Heat]
    points: Sequence[Point]
    paths: Sequence[Path]
    bars: Sequence[Bar]
    #: gains in held-out loss, in hundredths of a nat: own domains to the right, those to come upwards
    loss_points: Sequence[Point] = ()
    #: arms of the control's method, itself among them: what its settings alone can reach
    plain: Sequence[str] = ()


def views(lines: Sequence[Line], stages: Sequence[Line] = ()) -> Views:
    """The views of a comparison.

    Args:
        lines: of a ``runs.jsonl``, with at least one of an arm.
        stages: of its ``stages.jsonl``, for the losses.
    """
    found, arms = matrices(lines), arm_order(lines)
    tables = {column.metric: column for column in columns(found, lines[0]["control"], ("a_acc", "o_acc", "f_acc"))}
    bars = []
    for arm in arms:
        for metric, column in tables.items():
            if (one := column.summary(arm)) is not None:
                bars.append(Bar(metric, arm, one.mean, one.sd))
    heats = [
        _heat(arm, order, group) for arm in arms for order, group in of_orders(found[arm]).items()
    ]  # fmt: skip
    paths = [path for arm in arms for kind in _KINDS if (path := _path(arm, kind, found[arm])) is not None]
    control = lines[0]["control"]
    points = _points(arms, control, tables["a_acc"], tables["o_acc"])
    a, o = columns(loss_matrices(stages), control, ("a_gain", "o_gain"))
    return Views(
        arm_looks(arms), heats, points, paths, bars, _points(arms, control, a, o), _of_one_method(stages, control)
    )


def _points(arms: Sequence[str], control: str, across: Column, up: Column) -> list[Point]:
    points = []
    for arm in arms:
        a, o = _placed(across, arm, control), _placed(up, arm, control)
        if a is not None and o is not None:
            points.append(Point(arm, a[3], a[0], o[0], (a[1], a[2]), (o[1], o[2])))
    return points


def _placed(column: Column, arm: str, control: str) -> tuple[float, float, float, int] | None:
    """Mean, ends and number of runs of an arm, seen from the control over the runs that both have."""
    own, other = column.values.get(arm, {}), column.values.get(control, {})
    both = [run for run in own if run in other]
    centre = float(np.mean(list(other.values()))) if both else 0.0
    values = [centre + (own[run] - other[run]) for run in both] or list(own.values())
    if not values:
        return None
    low, high = min(values), max(values)
    # the mean of equal numbers may lie a rounding beside them, and bars of an error cannot be negative
    return min(max(float(np.mean(values)), low), high), low, high, len(values)


def _of_one_method(stages: Sequence[Line], control: str) -> list[str]:
    """The arms that are the control's method at any rate, length or setting."""
    used = {line["arm"]: [one["name"] for one in line.get("method") or []] for line in stages if line["arm"]}
    return [arm for arm, names in used.items() if names and names == used.get(control)]


def best_settings(points: Sequence[Point], arms: Sequence[str]) -> list[tuple[float, float]]:
    """Where the best of some arms stand, from left to right: those that no other one is both right of and above."""
    own = [one for one in points if one.arm in arms]
    best = [
        one for one in own
        if not any(other.a >= one.a and other.o >= one.o and (other.a, other.o) != (one.a, one.o) for other in own)
    ]  # fmt: skip
    return sorted({(one.a, one.o) for one in best})


def _heat(arm: str, order: int, group: Sequence[AccuracyMatrix]) -> Heat:
    mean = mean_matrix(group)
    gains = all(value is not None for value in mean.rows[0])
    return Heat(arm, order, len(group), gains, mean.domains, mean.gains() if gains else mean.rows[1:])


#: kind of path -> (stage, number of domains) -> tasks whose mean is taken
_KINDS: Mapping[str, Callable[[int, int], range]] = {
    "own": lambda stage, n: range(stage, stage + 1),
    "unseen": lambda stage, n: range(stage + 1, n + 1),
    "seen": lambda stage, n: range(1, stage),
}


def _path(arm: str, kind: str, runs: Mapping[RunName, AccuracyMatrix]) -> Path | None:
    points = []
    n = max(len(matrix.domains) for matrix in runs.values())
    for stage in range(1, n + 1):
        tasks = _KINDS[kind](stage, n)
        values = []
        for matrix in runs.values():
            pairs = [(matrix.at(stage, task), matrix.at(0, task)) for task in tasks]
            known = [a - b for a, b in pairs if a is not None and b is not None]
            if known and len(known) == len(tasks):
                values.append(float(np.mean(known)))
        if values and len(values) == len(runs):
            points.append((stage, float(np.mean(values)), min(values), max(values)))
    return Path(arm, kind, tuple(points)) if points else None
