"""What the figures of a grid of recycling show, case by case, as plain values (:mod:`anytune.evaluate.recycle_arms`).

Scores and curves have an interval over runs with the tasks held fixed: tasks differ in level far more than arms do.
Gains and flips have one over tasks and runs. Runs of one task and seed on several upgrades are one observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from anytune.evaluate.curves import Curve
from anytune.evaluate.recycle_arms import NO_DELTA, Column, Section, against, curve_of, flipped
from anytune.evaluate.recycle_claims import plain_arm
from anytune.evaluate.scores import Difference
from anytune.evaluate.stability import LEVEL, counted, hierarchical_difference

#: The recycle methods whose plain arms have a learning curve beside the control's.
LEARNING = ("initialize", "distill", "combined")


class Estimate(NamedTuple):
    """A mean in points with its 95 % interval; None where one run gives none."""

    mean: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or the mean twice."""
        return (self.mean if self.low is None else self.low, self.mean if self.high is None else self.high)


@dataclass(frozen=True)
class Landing:
    """An arm on one upgrade, over the tasks.

    Attributes:
        distance: of the upgrade's base from the first one, relative to its length.
        runs: of the arm on this upgrade.
        score: on test; None where the arm lacks a task that others have.
        gain: over the control; None of the control itself and of an arm that shares no run with it.
    """

    arm: str
    upgrade: str
    distance: float
    runs: int
    score: Estimate | None
    gain: Estimate | None


def landings(section: Section, distances: Mapping[str, float]) -> list[Landing]:
    """Every arm of a case on every upgrade whose distance is known, arm by arm, near upgrades first.

    Args:
        distances: upgrade -> relative distance.
    """
    known = sorted((one for one in section.upgrades if one in distances), key=lambda one: distances[one])
    gains = {upgrade: against([section], section.control, upgrade=upgrade) for upgrade in known}
    made = []
    for arm in section.arms:
        for upgrade in known:
            columns = [column for column in section.columns(same=True) if column.upgrade == upgrade]
            runs = sum(len(section.scores(arm, column)) for column in columns)
            if not runs:
                continue
            scores = [list(counted(section.scores(arm, column), section.floors[column]).values())
                      for column in columns]  # fmt: skip
            gain = gains[upgrade].get(arm)
            made.append(Landing(
                arm, upgrade, distances[upgrade], runs, over_runs(scores) if all(scores) else None,
                None if gain is None else _estimate(gain.difference),
            ))  # fmt: skip
    return made


def over_runs(tasks: Sequence[Sequence[float]]) -> Estimate:
    """Mean over tasks of the mean over runs, with a percentile bootstrap over the runs of each task.

    Args:
        tasks: at least one, each at least one number.
    """
    mean, low, high = _bands([np.asarray(one, dtype=np.float64)[:, None] for one in tasks])
    return Estimate(float(mean[0]), None if low is None else float(low[0]), None if high is None else float(high[0]))


def _bands(
    tasks: Sequence[np.ndarray], resamples: int = 4000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """:func:`over_runs` at several points at once, with the same draws: ``tasks`` are [runs, points] each."""
    mean = np.mean([one.mean(axis=0) for one in tasks], axis=0)
    if max(len(one) for one in tasks) == 1:
        return mean, None, None
    draw = np.random.default_rng(seed)
    drawn = np.zeros((resamples, mean.size))
    for one in tasks:
        drawn += draw.multinomial(len(one), np.full(len(one), 1 / len(one)), size=resamples) / len(one) @ one
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn / len(tasks), (tail, 1 - tail), axis=0)
    return mean, low, high


def _estimate(found: Difference) -> Estimate:
    return Estimate(found.mean, found.low, found.high)


# Learning curves


@dataclass(frozen=True)
class Learning:
    """The validation score of an arm by step, in points.

    Attributes:
        steps: [n].
        mean: [n], over tasks of the mean over runs.
        low, high: [n], the interval; None for one run a task.
        runs: observations: seeds of tasks.
        left_out: seeds of tasks with a run that diverged or was not scored twice; the curve is without them.
    """

    arm: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    runs: int
    left_out: int


def learning(section: Section) -> list[Learning]:
    """The curves of the control and of the plain arms of :data:`LEARNING`, over the upgrades that changed something.

    Read on the columns that all of these arms have, so that none is shown on easier tasks than another; between two
    scores of a run along a straight line, over the steps that all its runs have in common.
    """
    arms = [section.control, *(plain_arm([section], method) for method in LEARNING)]
    shown = [arm for arm in arms if arm is not None and any(section.runs.get(arm, {}).values())]
    columns = [column for column in section.columns() if all(section.runs[arm].get(column) for arm in shown)]
    made = []
    for arm in shown if section.control in shown else ():
        curves, left_out = _curves(section, arm, columns)
        flat = [curve for task in curves for run in task for curve in run]
        if not flat:
            continue
        start, end = max(curve.steps[0] for curve in flat), min(curve.steps[-1] for curve in flat)
        steps = np.unique(np.concatenate([curve.steps for curve in flat]))
        steps = steps[(steps >= start) & (steps <= end)]
        if steps.size < 2:
            continue
        tasks = [
            np.stack([np.mean([np.interp(steps, one.steps, one.scores) for one in run], axis=0) for run in task])
            for task in curves
        ]
        made.append(Learning(arm, steps, *_bands(tasks), sum(map(len, tasks)), left_out))
    return made


def _curves(section: Section, arm: str, columns: Sequence[Column]) -> tuple[list[list[list[Curve]]], int]:
    """task -> seed -> the curves on its upgrades, of seeds that have all of them; and how many seeds have not."""
    made, left_out = [], 0
    for task in dict.fromkeys(column.task for column in columns):
        own = [section.runs[arm][column] for column in columns if column.task == task]
        whole: list[list[Curve]] = []
        seeds = dict.fromkeys(seed for runs in own for seed in runs)
        for seed in seeds:
            found = [curve_of(runs[seed]) for runs in own if seed in runs and not runs[seed]["failed"]]
            there = [curve for curve in found if curve is not None]
            if len(there) == len(own):
                whole.append(there)
        left_out += len(seeds) - len(whole)
        if whole:
            made.append(whole)
    return made, left_out


# Flips


@dataclass(frozen=True)
class Broken:
    """An arm's negative flips against the old weights on the old base, and its gain over the control on these tasks.

    Both in points; ``runs`` are seeds of tasks.
    """

    arm: str
    runs: int
    flips: Estimate
    gain: Estimate


def flips_against_gain(section: Section, gold: Mapping[str, Sequence[Any]]) -> list[Broken]:
    """Every arm with answers, over the upgrades that changed something; the control stands at a gain of 0.

    Args:
        gold: task -> gold answers of its test split; other tasks are left out of flips and of gains.
    """
    gains = against(
        [section], section.control,
        lambda own, arm, column: own.scores(arm, column) if gold.get(column.task) else {},
    )  # fmt: skip
    made = []
    for arm in section.arms:
        if arm == NO_DELTA:
            continue
        found = [(column.task, one) for column in section.columns() if (one := flipped(section, arm, column, gold))]
        flips = hierarchical_difference([(one, dict.fromkeys(one, 0.0)) for _, one in found],
                                        groups=[task for task, _ in found])  # fmt: skip
        gain = Estimate(0.0, None, None) if arm == section.control else None
        if arm in gains:
            gain = _estimate(gains[arm].difference)
        if flips is not None and gain is not None:
            made.append(Broken(arm, flips.n, _estimate(flips), gain))
    return made
