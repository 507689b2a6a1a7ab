"""How stable a method is over training runs: spread, failures, and what a comparison with a control can decide.

The unit is the training run. An arm is a mapping run -> score, where a run is named by its seed and a run that
diverged has the score None. Scores are in the unit of the reader (points, 100 times the metric) and, where arms are
compared, signed so that more is better.

A run has failed if it diverged (its loss or weights were not finite), or if its test score is not above the floor:
what always answering the commonest training label (for regression the mean) scores on the same test split. A run
that diverged enters means, spread and differences with the floor, which is what its user is left with; left out, it
would flatter the arm. Where there is no floor (generation) it can only be left out, and is counted as failed.

Nothing here needs more than numpy: the tail of the F distribution is the regularised incomplete beta function, by its
continued fraction (Press et al., Numerical Recipes, 6.4; Lentz's method).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.evaluate.scores import DECIDING_SEEDS, Difference, Outcome, number, paired_difference, sign_flip

Arm = Mapping[Any, float | None]
#: A loss of less than this many points is no loss for "no worse".
MARGIN = 0.5
#: Fewer runs than this in either arm decide nothing about spread.
SPREAD_RUNS = 20
LEVEL, POWER = 0.95, 0.8


@dataclass(frozen=True)
class Stability:
    """One arm over its ``n`` runs; ``sd`` is None for one run, ``mean`` and ``worst`` where no run has a score."""

    n: int
    mean: float | None
    sd: float | None
    worst: float | None
    failed: int

    @property
    def share_failed(self) -> float:
        """Failed runs of all runs."""
        return self.failed / self.n


def has_failed(score: float | None, floor: float | None, *, higher: bool = True) -> bool:
    """Whether a run counts as failed: it has no score, or one that is not better than ``floor``."""
    score = number(score)
    if score is None:
        return True
    if floor is None:
        return False
    return score <= floor if higher else score >= floor


def counted(arm: Arm, floor: float | None) -> dict[Any, float]:
    """The scores that are computed with: ``floor`` for a run that diverged; without a floor such runs are left out."""
    found = {run: floor if number(score) is None else number(score) for run, score in arm.items()}
    return {run: score for run, score in found.items() if score is not None}


def stability(arm: Arm, floor: float | None, *, higher: bool = True) -> Stability | None:
    """Mean, sample standard deviation, worst score and failed runs of an arm; None for no run at all.

    Args:
        higher: whether a larger score is the better one.
    """
    if not arm:
        return None
    values = np.array(list(counted(arm, floor).values()), dtype=np.float64)
    failed = sum(has_failed(score, floor, higher=higher) for score in arm.values())
    if not values.size:
        return Stability(len(arm), None, None, None, failed)
    spread = float(values.std(ddof=1)) if values.size > 1 else None
    worst = float(values.min() if higher else values.max())
    return Stability(len(arm), float(values.mean()), spread, worst, failed)


# Differences


def hierarchical_difference(
    tasks: Sequence[tuple[Arm, Arm]], *, groups: Sequence[Any] = (), level: float = LEVEL, resamples: int = 4000,
    seed: int = 0,
) -> Difference | None:  # fmt: skip
    """Mean over tasks of the mean paired difference ``a - b``, with a bootstrap over tasks and over runs.

    Each draw takes as many tasks as there are, with replacement, and of each task taken as many of its paired runs as
    it has, with replacement; the interval is a percentile one. ``p`` is the two-sided sign-flip p over all paired
    runs, each weighted so that tasks count equally: it speaks about these tasks, the interval about tasks like them.

    Args:
        tasks: for each task the two arms; runs are paired by name.
        groups: for each task what its runs are runs of; () for each its own. Tasks of one group are several scores of
            the same runs (the other tasks that a tuned model is scored on): such runs are one observation each, their
            mean over these tasks, and a draw takes the same runs for all of them. Runs that a task lacks are left out.

    Returns:
        ``n`` counts paired runs; None if there is none.
    """
    if len(set(groups)) < len(groups):
        return _grouped_difference(tasks, groups, level, resamples, seed)
    paired = [_paired(a, b) for a, b in tasks]
    paired = [one for one in paired if one.size]
    if not paired:
        return None
    mean = float(np.mean([one.mean() for one in paired]))
    runs = sum(one.size for one in paired)
    if runs == 1:
        return Difference(1, mean, None, None, 1.0, "undecided")
    draw = np.random.default_rng(seed)
    taken = draw.integers(0, len(paired), (resamples, len(paired)))
    means = np.empty(taken.shape)
    for task, differences in enumerate(paired):
        places = taken == task
        rows = draw.integers(0, differences.size, (int(places.sum()), differences.size))
        means[places] = differences[rows].mean(axis=1)
    tail = (1 - level) / 2
    low, high = (float(value) for value in np.quantile(means.mean(axis=1), (tail, 1 - tail)))
    p = sign_flip(np.concatenate([one * runs / (len(paired) * one.size) for one in paired]))
    return Difference(runs, mean, low, high, p, _outcome(min(one.size for one in paired), low, high))


def _grouped_difference(
    tasks: Sequence[tuple[Arm, Arm]], groups: Sequence[Any], level: float, resamples: int, seed: int
) -> Difference | None:
    members: dict[Any, list[dict[Any, float]]] = {}
    for (a, b), group in zip(tasks, groups, strict=True):
        pairs = {run: (number(a[run]), number(b[run])) for run in a.keys() & b.keys()}
        found = {run: x - y for run, (x, y) in pairs.items() if x is not None and y is not None}
        if found:
            members.setdefault(group, []).append(found)
    matrices = []
    for own in members.values():
        runs = sorted(set.intersection(*(set(one) for one in own)), key=str)
        if runs:
            matrices.append(np.array([[one[run] for run in runs] for one in own]))  # [tasks, runs]
    if not matrices:
        return None
    count = sum(one.shape[1] for one in matrices)
    mean = float(np.mean([one.mean() for one in matrices]))
    if count == 1:
        return Difference(1, mean, None, None, 1.0, "undecided")
    draw = np.random.default_rng(seed)
    taken = draw.integers(0, len(matrices), (resamples, len(matrices)))
    means = np.empty(taken.shape)
    for place, one in enumerate(matrices):
        wanted = int((taken == place).sum())
        rows, runs_ = (draw.multinomial(size, np.full(size, 1 / size), size=wanted) / size for size in one.shape)
        means[taken == place] = np.einsum("kt,tr,kr->k", rows, one, runs_)
    tail = (1 - level) / 2
    low, high = (float(value) for value in np.quantile(means.mean(axis=1), (tail, 1 - tail)))
    flipped = [one.mean(axis=0) * count / (len(matrices) * one.shape[1]) for one in matrices]
    outcome = _outcome(min(one.shape[1] for one in matrices), low, high)
    return Difference(count, mean, low, high, sign_flip(np.concatenate(flipped)), outcome)


def _paired(a: Arm, b: Arm) -> np.ndarray:
    """``a - b`` of the runs with a number in both, [n]."""
    pairs = [(number(a[run]), number(b[run])) for run in sorted(a.keys() & b.keys(), key=str)]
    return np.array([x - y for x, y in pairs if x is not None and y is not None], dtype=np.float64)


def _outcome(runs: int, low: float, high: float) -> Outcome:
    if runs < DECIDING_SEEDS or low <= 0 <= high:
        return "undecided"
    return "higher" if low > 0 else "lower"


def holm(p: Mapping[Any, float]) -> dict[Any, float]:
    """p-values corrected for their number (Holm 1979): the k-th smallest of m times m - k + 1, never falling."""
    adjusted, largest = {}, 0.0
    for place, key in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, p[key] * (len(p) - place)))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p}


@dataclass(frozen=True)
class Against:
    """One arm against the control.

    Attributes:
        difference: arm minus control with its interval, not corrected for the number of arms.
        p: the sign-flip p, corrected by Holm over the arms of the comparison.
        outcome: "higher" or "lower" where the interval excludes 0 and the corrected p is below 1 - level; else
            "undecided".
        no_worse: whether the interval's lower end lies above ``-MARGIN``; None for fewer than three runs.
        smallest: the smallest true difference that this comparison had an 80 % chance to show, uncorrected.
        spread_p: Brown-Forsythe p that both arms spread equally; None with fewer than two runs.
        spread: "higher" where the arm's scores spread more than the control's, "lower" where less; "undecided" with
            fewer than ``SPREAD_RUNS`` runs in either.
    """

    difference: Difference
    p: float
    outcome: Outcome
    no_worse: bool | None
    smallest: float | None
    spread_p: float | None = None
    spread: Outcome = "undecided"


def against_control(
    arms: Mapping[str, Arm], control: str, *, floor: float | None = None, level: float = LEVEL
) -> dict[str, Against]:
    """Every other arm against ``control`` on one task, paired by run; arms without a common run are left out.

    Args:
        floor: see the top of this module.
    """
    scores = {name: counted(arm, floor) for name, arm in arms.items()}
    beside = scores[control]
    found = {
        name: (difference, _smallest(_paired(arm, beside), level))
        for name, arm in scores.items()
        if name != control and (difference := paired_difference(arm, beside, level=level)) is not None
    }
    decided = decide({name: one for name, (one, _) in found.items()}, level)
    made = {}
    for name, (difference, smallest) in found.items():
        p, outcome = decided[name]
        groups = [list(scores[name].values()), list(beside.values())]
        spread_p = brown_forsythe(groups)[1] if min(map(len, groups)) > 1 else None
        made[name] = Against(
            difference, p, outcome, no_worse(difference), smallest, spread_p, _spread(groups, spread_p, level)
        )
    return made


def across_tasks(
    tasks: Sequence[Mapping[str, Arm]], control: str, *, floors: Sequence[float | None] = (),
    groups: Sequence[Any] = (), level: float = LEVEL,
) -> dict[str, Against]:  # fmt: skip
    """Every other arm against ``control`` over several tasks (:func:`hierarchical_difference`).

    An arm counts with the tasks that it and the control were both run on. ``groups`` says which tasks are scores of
    the same runs.
    """
    floors = floors or [None] * len(tasks)
    keys = groups or range(len(tasks))
    scores = [
        {name: counted(arm, floor) for name, arm in arms.items()} for arms, floor in zip(tasks, floors, strict=True)
    ]
    names = dict.fromkeys(name for arms in tasks for name in arms if name != control)
    found = {}
    for name in names:
        both = [place for place, arms in enumerate(scores) if name in arms and control in arms]
        pairs = [(scores[place][name], scores[place][control]) for place in both]
        difference = hierarchical_difference(pairs, groups=[keys[place] for place in both], level=level)
        if difference is not None:
            found[name] = difference
    decided = decide(found, level)
    factor = normal_quantile((1 + level) / 2) + normal_quantile(POWER)
    made = {}
    for name, one in found.items():
        p, outcome = decided[name]
        width = None if one.low is None or one.high is None else one.high - one.low
        smallest = None if width is None else factor * width / (2 * normal_quantile((1 + level) / 2))
        made[name] = Against(one, p, outcome, no_worse(one), smallest)
    return made


def decide(differences: Mapping[str, Difference], level: float = LEVEL) -> dict[str, tuple[float, Outcome]]:
    """Holm's p and the outcome of each arm; both the interval and the corrected p must speak for a difference."""
    adjusted = holm({name: one.p for name, one in differences.items()})
    return {
        name: (adjusted[name], one.outcome if adjusted[name] < 1 - level + 1e-12 else "undecided")
        for name, one in differences.items()
    }


def no_worse(difference: Difference, margin: float = MARGIN) -> bool | None:
    """Whether the lower end of the interval lies above ``-margin``; None for fewer runs than decide anything."""
    return None if difference.low is None or difference.n < DECIDING_SEEDS else difference.low > -margin


def smallest_shown(n: int, sd: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true mean difference that a paired t-test on ``n`` runs shows with probability ``power``.

    (t_{(1 + level) / 2} + t_{power}) * sd / sqrt(n), both quantiles of Student's t with n - 1 degrees of freedom;
    ``sd`` is that of the paired differences.
    """
    return (t_quantile((1 + level) / 2, n - 1) + t_quantile(power, n - 1)) * sd / math.sqrt(n)


def _smallest(differences: np.ndarray, level: float) -> float | None:
    if differences.size < DECIDING_SEEDS:
        return None
    return smallest_shown(int(differences.size), float(differences.std(ddof=1)), level)


# Spread


def brown_forsythe(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """F and p that all groups have the same spread (Brown and Forsythe 1974): an F test on |x - median|.

    Args:
        groups: at least two, of at least two numbers each.

    Returns:
        (F, p); (0, 1) where no number leaves its group's median, (inf, 0) where deviations differ between groups
        and never within one.
    """
    moved = [np.abs(np.asarray(group, dtype=np.float64) - np.median(group)) for group in groups]
    total, k = sum(map(len, moved)), len(moved)
    grand = float(np.concatenate(moved).mean())
    between = float(sum(len(one) * (one.mean() - grand) ** 2 for one in moved)) / (k - 1)
    within = float(sum(((one - one.mean()) ** 2).sum() for one in moved)) / (total - k)
    if within <= 1e-24 * max(1.0, grand**2):
        return (0.0, 1.0) if between <= 1e-24 * max(1.0, grand**2) else (math.inf, 0.0)
    return between / within, f_tail(between / within, k - 1, total - k)


def _spread(groups: Sequence[Sequence[float]], p: float | None, level: float) -> Outcome:
    if p is None or min(map(len, groups)) < SPREAD_RUNS or p >= 1 - level:
        return "undecided"
    arm, control = (float(np.abs(np.asarray(group) - np.median(group)).mean()) for group in groups)
    return "higher" if arm > control else "lower"


# Distributions


def f_tail(f: float, above: float, below: float) -> float:
    """P(F >= f) with ``above`` and ``below`` degrees of freedom."""
    return 1.0 if f <= 0 else incomplete_beta(below / (below + above * f), below / 2, above / 2)


def t_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t, p in (0.5, 1), by bisection."""

    def below(t: float) -> float:
        return 1 - incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2

    return _bisected(below, p)


def normal_quantile(p: float) -> float:
    """The p-quantile of the standard normal, p in (0.5, 1), by bisection."""
    return _bisected(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2, p)


def _bisected(below: Any, p: float) -> float:
    low, high = 0.0, 1.0
    while below(high) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), x in [0, 1]."""
    if x <= 0 or x >= 1:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    tiny, c = 1e-300, 1.0
    d = 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            c = 1 + term / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * value
