"""Scores over seeds: how high, how spread, and whether one arm is above another.

The unit is the training run. Two arms are compared seed by seed, because a seed fixes the data order and the fresh
head of both; the interval is a percentile bootstrap over those paired differences. With n seeds the smallest
two-sided sign-flip p is 2 / 2^n (0.25 for three seeds), so it is reported beside the interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Outcome = Literal["higher", "lower", "undecided"]

#: metrics where less is better; all others are better when higher
LOWER_IS_BETTER = frozenset({"mse", "loss", "perplexity"})
#: fewer seeds than this never decide anything
DECIDING_SEEDS = 3


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of ``metric`` is the better one."""
    return metric not in LOWER_IS_BETTER


def number(value: Any) -> float | None:
    """``value`` as a finite float, or None: manifests may hold None, and a diverged run holds no number at all."""
    if value is None or isinstance(value, (bool, str)):
        return None
    value = float(value)
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Summary:
    """``n`` values: their mean, sample standard deviation (None for one value), smallest and largest."""

    n: int
    mean: float
    sd: float | None
    minimum: float
    maximum: float


def summarise(values: Iterable[float | None]) -> Summary | None:
    """Summary of the values that are there; None if there are none."""
    found = np.array([value for value in map(number, values) if value is not None], dtype=np.float64)
    if not found.size:
        return None
    spread = float(found.std(ddof=1)) if found.size > 1 else None
    return Summary(int(found.size), float(found.mean()), spread, float(found.min()), float(found.max()))


@dataclass(frozen=True)
class Difference:
    """``a - b`` over the ``n`` seeds that both have, in the unit of the scores.

    ``low`` and ``high`` are the bootstrap interval (None for a single seed), ``p`` the exact two-sided sign-flip
    p-value. ``outcome`` is "undecided" when the interval holds 0 or fewer than three seeds are paired.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float
    outcome: Outcome


def paired_difference(
    a: Mapping[Any, float | None],
    b: Mapping[Any, float | None],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Difference | None:
    """Mean of ``a[k] - b[k]`` over the keys (seeds) with a number in both; None if there is no such key.

    Args:
        a: score by seed.
        b: score by seed of what it is compared with.
        level: of the percentile bootstrap interval over the paired differences.
        resamples: bootstrap draws.
        seed: of the bootstrap: the same input always gives the same interval.
    """
    pairs = [(number(a[key]), number(b[key])) for key in sorted(a.keys() & b.keys(), key=str)]
    differences = np.array([x - y for x, y in pairs if x is not None and y is not None], dtype=np.float64)
    if not differences.size:
        return None
    mean = float(differences.mean())
    if differences.size == 1:
        return Difference(1, mean, None, None, 1.0, "undecided")
    drawn = np.random.default_rng(seed).integers(0, differences.size, (resamples, differences.size))
    tail = (1 - level) / 2
    low, high = (float(value) for value in np.quantile(differences[drawn].mean(axis=1), (tail, 1 - tail)))
    outcome: Outcome = "undecided"
    if differences.size >= DECIDING_SEEDS and (low > 0 or high < 0):
        outcome = "higher" if low > 0 else "lower"
    return Difference(int(differences.size), mean, low, high, sign_flip(differences), outcome)


def sign_flip(differences: np.ndarray, *, exact_up_to: int = 12) -> float:
    """Two-sided sign-flip p of mean difference 0, exact up to ``exact_up_to`` pairs, else from 4,096 seeded flips.

    Args:
        differences: [n] paired differences.
    """
    n = differences.size
    if n <= exact_up_to:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(4096, n))
        signs[0] = 1.0  # the observed signs are one of the possible ones
    means = np.abs(signs @ differences) / n
    return float((means >= abs(differences.mean()) - 1e-12).mean())
