"""How good is a measure of transferability? Its order of the sources against the order of what transfer then gave.

Predicted and true scores stand in matrices [S, T], one row a source and one column a target. Everything is computed
target by target, over the sources that have both numbers; a task as its own source is left out. What is true is the
caller's choice: the score after the first epoch (as PANDA's authors have it), the final score, or the gain over no
transfer (:func:`gain`), which has the same order within a target.

Per target: Spearman (ties at their mean rank), Kendall's tau-b, NDCG@k, regret@k and the score of the source ranked
first. A column in which either side is constant has no rank correlation: it is counted and left out, not taken as 0.

    NDCG@k    sum over the first k of g / log2(1 + rank), over the same of the best order; g = truth from 0 (the worst
              source of the target) to 1 (the best)
    regret@k  the best true score less the best among the k ranked first: what trying k sources still misses

Where predictions tie, both are means over all orders of the tied sources, so a constant measure scores what a random
order does (``random_regret``, exact) and no luck of sorting enters.

Intervals are percentile bootstraps over targets (over families of targets where ``families`` says which of them are
over the same texts). The p of the mean Spearman comes from exchanging whole sources: a measure that likes a source
likes it for most targets, and so does the truth, so cells are no independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.errors import DataError
from anytune.evaluate.scores import Difference, paired_difference

# Comparisons of two sources that a permutation test makes at once: memory of some 30 MB.
_COMPARED = 1_000_000


@dataclass(frozen=True)
class TargetQuality:
    """One target (column ``target``) over its ``sources``; None where there is no number.

    Attributes:
        left_out: pairs without both numbers, the self pair not among them.
        ndcg, regret, random_regret: by k, for k up to the number of sources; regrets in the unit of the truth.
        chosen: true score of the source ranked first.
        oracle: the best.
        random: the mean, which is what a random source gives.
        size: that of the largest source, where sizes were given.
    """

    target: int
    sources: int
    left_out: int
    spearman: float | None
    kendall: float | None
    ndcg: dict[int, float]
    regret: dict[int, float]
    random_regret: dict[int, float]
    chosen: float
    oracle: float
    random: float
    size: float | None


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` targets with its bootstrap interval; None for fewer than two (``low``, ``high``) or none."""

    n: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MetricQuality:
    """A measure over all targets.

    Attributes:
        targets: one each, those with fewer than two sources left out.
        undefined: targets whose Spearman does not exist, since either side is constant.
        left_out: pairs without both numbers.
        p: two-sided, that mean Spearman is 0; None where it is not defined.
        pooled: Spearman over all pairs in one, which also sees differences between targets; None as above.
        ndcg, regret, random_regret: by k, over the targets that have so many sources.
        over_random, over_size: true score of the first choice less that of a random and of the largest source.
    """

    targets: tuple[TargetQuality, ...]
    undefined: int
    left_out: int
    spearman: Interval
    kendall: Interval
    p: float | None
    pooled: float | None
    ndcg: dict[int, Interval]
    regret: dict[int, Interval]
    random_regret: dict[int, Interval]
    over_random: Difference | None
    over_size: Difference | None


def evaluate_metric(
    predicted: Any,
    truth: Any,
    self_pairs: Any | None = None,
    *,
    sizes: Any | None = None,
    k: Sequence[int] = (1, 3, 5),
    families: Sequence[Hashable] = (),
    level: float = 0.95,
    resamples: int = 4000,
    permutations: int = 1000,
    seed: int = 0,
) -> MetricQuality:
    """Hold predictions against what transfer gave.

    Args:
        predicted: [S, T], higher where transfer should do better; NaN where there is none.
        truth: [S, T], higher is better; NaN where a pair was not run.
        self_pairs: [S, T], true where source and target are the same task (or hold the same texts and labels).
        sizes: [S] training rows of the sources, for the control.
        k: how many sources one would try.
        families: of each target [T], what it is drawn together with in the bootstrap.
        level: of the intervals.
        resamples: bootstrap draws.
        permutations: of the sources, for ``p``; 0 for none.
        seed: of both.

    Raises:
        DataError: shapes differ, or no target has two sources with both numbers.
    """
    guess, true = _columns(predicted, truth, self_pairs)
    own = np.zeros(true.shape, dtype=bool) if self_pairs is None else np.asarray(self_pairs, dtype=bool)
    large = None if sizes is None else np.asarray(sizes, dtype=np.float64)
    if large is not None and large.shape != (len(true),):
        raise DataError(f"{large.size} sizes for {len(true)} sources", why="Each source has one.")
    if families and len(families) != true.shape[1]:
        raise DataError(f"{len(families)} families for {true.shape[1]} targets", why="Each target has one.")
    both = np.isfinite(guess) & np.isfinite(true)
    found = [
        _target(place, guess[keep, place], true[keep, place], None if large is None else large[keep], k,
                int((~keep & ~own[:, place]).sum()))
        for place, keep in enumerate(both.T)
        if keep.sum() >= 2
    ]  # fmt: skip
    if not found:
        raise DataError(
            "no target has two sources with a prediction and a score",
            why="An order needs two; a task is no source of its own.",
        )
    groups = [families[one.target] if families else one.target for one in found]

    def interval(values: Sequence[float | None]) -> Interval:
        return _interval(values, groups, level, resamples, seed)

    def by_k(name: str) -> dict[int, Interval]:
        return {one: interval([getattr(target, name).get(one) for target in found]) for one in k}

    def over(name: str) -> Difference | None:
        chosen: dict[Any, list[float]] = {}
        other: dict[Any, list[float]] = {}
        for target, group in zip(found, groups, strict=True):
            beside = getattr(target, name)
            if beside is not None:
                chosen.setdefault(group, []).append(target.chosen)
                other.setdefault(group, []).append(beside)
        means = ({group: float(np.mean(values)) for group, values in side.items()} for side in (chosen, other))
        return paired_difference(*means, level=level, resamples=resamples, seed=seed)

    correlations = [one.spearman for one in found]
    return MetricQuality(
        targets=tuple(found),
        undefined=sum(one is None for one in correlations),
        left_out=sum(one.left_out for one in found),
        spearman=interval(correlations),
        kendall=interval([one.kendall for one in found]),
        p=_exchanged(guess, true, permutations, seed),
        pooled=_none_if_nan(spearman(guess[both], true[both])),
        ndcg=by_k("ndcg"),
        regret=by_k("regret"),
        random_regret=by_k("random_regret"),
        over_random=over("random"),
        over_size=over("size"),
    )


def gain(truth: Any, baseline: Any) -> np.ndarray:
    """Scores [S, T] less what no transfer gives for each target, ``baseline`` [T]."""
    return np.asarray(np.asarray(truth, dtype=np.float64) - np.asarray(baseline, dtype=np.float64))


# One column


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 of ``values`` [n], ties at their mean rank."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[group])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two [n], in [-1, 1]; NaN where either is constant."""
    left, right = (ranks - ranks.mean() for ranks in (average_ranks(a), average_ranks(b)))
    spread = math.sqrt(float(left @ left) * float(right @ right))
    return float(np.clip(left @ right / spread, -1.0, 1.0)) if spread > 0 else math.nan


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of two [n], in [-1, 1]; NaN where either is constant."""
    pairs = np.triu_indices(len(a), 1)
    left, right = (np.sign(one[:, None] - one[None, :])[pairs] for one in (a, b))
    spread = math.sqrt(float(np.abs(left).sum()) * float(np.abs(right).sum()))
    return float(np.clip((left * right).sum() / spread, -1.0, 1.0)) if spread > 0 else math.nan


def ndcg(predicted: np.ndarray, truth: np.ndarray, k: int) -> float:
    """NDCG@k of two [n] as this module defines it, in [0, 1]; 1 where all sources are equally good."""
    low, high = truth.min(), truth.max()
    if high <= low:
        return 1.0
    gains = (truth - low) / (high - low)
    discount = np.where(np.arange(len(truth)) < k, 1 / np.log2(np.arange(len(truth)) + 2), 0.0)
    # tied sources share the mean discount of the places they take together
    _, group, sizes = np.unique(-predicted, return_inverse=True, return_counts=True)
    shared = np.add.reduceat(discount, np.cumsum(sizes) - sizes) / sizes
    return float(gains @ shared[group] / (np.sort(gains)[::-1] @ discount))


def regret(predicted: np.ndarray, truth: np.ndarray, k: int) -> float:
    """The best of ``truth`` [n] less the best among the ``k`` <= n with the highest ``predicted``, at least 0.

    Where the k-th place is tied, the mean over which of the tied ones are taken.
    """
    return max(0.0, float(truth.max()) - _best_among(predicted, truth, k))


def _best_among(predicted: np.ndarray, truth: np.ndarray, k: int) -> float:
    """The best of ``truth`` among the ``k`` with the highest ``predicted``; of tied ones the mean over choices."""
    edge = np.sort(predicted)[::-1][k - 1]
    sure, tied = truth[predicted > edge], np.sort(truth[predicted == edge])
    taken, every = k - len(sure), len(tied)
    # P(the largest of the taken is the i-th smallest of the tied) = C(i - 1, taken - 1) / C(every, taken)
    chances = np.array([math.comb(place, taken - 1) for place in range(every)]) / math.comb(every, taken)
    best = np.maximum(tied, sure.max()) if len(sure) else tied
    return float(chances @ best)


def _target(
    place: int, guess: np.ndarray, true: np.ndarray, sizes: np.ndarray | None, k: Sequence[int], left_out: int
) -> TargetQuality:
    tries = [one for one in k if one <= len(true)]
    same = np.zeros(len(true))
    return TargetQuality(
        target=place,
        sources=len(true),
        left_out=left_out,
        spearman=_none_if_nan(spearman(guess, true)),
        kendall=_none_if_nan(kendall(guess, true)),
        ndcg={one: ndcg(guess, true, one) for one in tries},
        regret={one: regret(guess, true, one) for one in tries},
        random_regret={one: regret(same, true, one) for one in tries},
        chosen=_best_among(guess, true, 1),
        oracle=float(true.max()),
        random=float(true.mean()),
        size=None if sizes is None else _best_among(sizes, true, 1),
    )


# Over columns


def _columns(predicted: Any, truth: Any, self_pairs: Any | None) -> tuple[np.ndarray, np.ndarray]:
    """Both [S, T] in float64, NaN where there is no number and at self pairs."""
    guess, true = (np.array(side, dtype=np.float64) for side in (predicted, truth))
    shapes = [guess.shape, true.shape] + ([] if self_pairs is None else [np.shape(self_pairs)])
    if guess.ndim != 2 or len(set(shapes)) > 1:
        raise DataError(
            f"matrices of the shapes {', '.join(map(str, shapes))}",
            why="Predicted scores, true scores and the mask of self pairs have one row a source, one column a target.",
        )
    for side in (guess, true):
        side[~np.isfinite(side)] = np.nan
        if self_pairs is not None:
            side[np.asarray(self_pairs, dtype=bool)] = np.nan
    return guess, true


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _interval(
    values: Sequence[float | None], groups: Sequence[Hashable], level: float, resamples: int, seed: int
) -> Interval:
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            members.setdefault(group, []).append(value)
    count = sum(map(len, members.values()))
    if not count:
        return Interval(0, None, None, None)
    sums, sizes = (np.array([function(one) for one in members.values()], float) for function in (math.fsum, len))
    mean = float(sums.sum() / sizes.sum())
    if len(members) < 2:
        return Interval(count, mean, None, None)
    drawn = np.random.default_rng(seed).integers(0, len(members), (resamples, len(members)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = (float(one) for one in np.quantile(means, (tail, 1 - tail)))
    return Interval(count, mean, low, high)


def _exchanged(guess: np.ndarray, true: np.ndarray, permutations: int, seed: int) -> float | None:
    """Share of orders of the rows of ``guess`` whose mean Spearman is at least as far from 0, the own one counted."""
    observed = float(_mean_spearmans(guess[None], true)[0])
    if math.isnan(observed) or not permutations:
        return None
    draw = np.random.default_rng(seed)
    together = max(1, _COMPARED // (guess.size * len(guess)))
    beyond = 0
    for done in range(0, permutations, together):
        orders = [draw.permutation(len(guess)) for _ in range(min(together, permutations - done))]
        beyond += int((np.abs(_mean_spearmans(guess[np.array(orders)], true)) >= abs(observed) - 1e-12).sum())
    return (1 + beyond) / (1 + permutations)


def _mean_spearmans(guesses: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Of every one of ``guesses`` [P, S, T] the mean over columns of Spearman's with ``true`` [S, T], [P].

    What :func:`spearman` gives column by column, where a pair without a number is left out; NaN where no column has
    a value. Ranks are counted from comparisons, for all P at once: a permutation test asks for a thousand.
    """
    keep = np.isfinite(guesses) & np.isfinite(true)
    left, right = (_centred_ranks(np.broadcast_to(side, keep.shape), keep) for side in (guesses, true))
    spread = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    defined = spread > 0
    found = np.divide((left * right).sum(axis=1), spread, out=np.zeros_like(spread), where=defined)
    counts = defined.sum(axis=1)
    return np.divide(found.sum(axis=1), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _centred_ranks(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Average ranks less their mean within each column of ``values`` [P, S, T], 0 where ``keep`` is false."""
    one, other = values[:, :, None], values[:, None]
    below = (other < one) + 0.5 * (other == one)
    ranks = (below * keep[:, None]).sum(axis=2)
    counts = keep.sum(axis=1, keepdims=True)
    return np.where(keep, ranks - counts / 2, 0.0)
