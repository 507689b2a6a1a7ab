"""Learning curves: when a score is first reached, the area below a curve, and one band from several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anytune.evaluate.scores import number
from anytune.manifests import CurvePoint

Axis = Literal["steps", "seconds"]


@dataclass(frozen=True)
class Curve:
    """Points of one run, ordered by step: ``steps`` [n], ``seconds`` [n] of training, ``scores`` [n]."""

    steps: np.ndarray
    seconds: np.ndarray
    scores: np.ndarray

    def along(self, axis: Axis) -> np.ndarray:
        """The horizontal values: steps or seconds, [n]."""
        return self.steps if axis == "steps" else self.seconds


def curve_of(points: Iterable[CurvePoint], metric: str, split: str = "validation") -> Curve | None:
    """The curve of ``metric`` on ``split``; points without a finite value are left out, None if none is left.

    Of two points at the same step the later one counts (a resumed run may evaluate a step twice).
    """
    found = {}
    for point in points:
        value = number(point.scores.get(metric))
        if point.split == split and value is not None:
            found[point.step] = (point.step, point.seconds, value)
    if not found:
        return None
    steps, seconds, scores = np.array([found[step] for step in sorted(found)], dtype=np.float64).T
    return Curve(steps, seconds, scores)


@dataclass(frozen=True)
class Reached:
    """Where a curve first reached its target."""

    step: float
    seconds: float


def reach(curve: Curve, target: float, *, higher: bool = True) -> Reached | None:
    """First point of the curve at or beyond ``target`` (at or below it if not ``higher``); None if there is none.

    Nothing is read between points: a score counts only where it was measured.
    """
    there = np.flatnonzero(curve.scores >= target if higher else curve.scores <= target)
    return Reached(float(curve.steps[there[0]]), float(curve.seconds[there[0]])) if there.size else None


def censored_median(values: Sequence[float | None]) -> float | None:
    """Median where None means "not within the run", so later than every number: None if the median is not reached.

    Leaving out the seeds that never arrived would flatter an arm; counting them as "later" does not.
    """
    if not values:
        return None
    ordered = sorted(np.inf if value is None else value for value in values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return float(middle) if np.isfinite(middle) else None


def area(curve: Curve, axis: Axis = "steps") -> float | None:
    """Area under the curve by trapezoids, divided by its width: the mean height, in the unit of the score.

    None for a curve with no width. Compare only curves over the same range.
    """
    x = curve.along(axis)
    width = float(x[-1] - x[0])
    if width <= 0:
        return None
    return float(((curve.scores[1:] + curve.scores[:-1]) / 2 * np.diff(x)).sum() / width)


@dataclass(frozen=True)
class Band:
    """Several seeds as one: ``x`` [m] with the mean, smallest and largest score there; ``n`` curves."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def align(curves: Sequence[Curve], axis: Axis = "steps") -> Band | None:
    """Mean and min/max band over seeds.

    Curves measured at the same steps are joined point by point (along seconds each point stands at the mean of its
    seconds). Others are read off by straight lines between their points, over the range that all of them cover. None
    where there is no curve, or no range in common.
    """
    if not curves:
        return None
    first = curves[0]
    if all(np.array_equal(curve.steps, first.steps) for curve in curves):
        x = np.mean([curve.along(axis) for curve in curves], axis=0)
        scores = np.stack([curve.scores for curve in curves])
    else:
        start = max(float(curve.along(axis)[0]) for curve in curves)
        end = min(float(curve.along(axis)[-1]) for curve in curves)
        x = np.unique(np.concatenate([curve.along(axis) for curve in curves]))
        x = x[(x >= start) & (x <= end)]
        if not x.size:
            return None
        scores = np.stack([np.interp(x, curve.along(axis), curve.scores) for curve in curves])
    return Band(x, scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0), len(curves))
