"""In which order should the rows of a similarity matrix stand, so that blocks can be seen?

Average linkage: begin with every item alone; join the two groups with the largest mean similarity until one is left.
Of the two halves of a join the smaller one stands first unless that puts less similar items side by side.
"""

from __future__ import annotations

import numpy as np


def cluster_order(similarity: np.ndarray) -> list[int]:
    """The items of a symmetric matrix [K, K] in the order of their clusters; NaN counts as the smallest similarity.

    The order depends on nothing but the numbers: of equal joins the first is made.
    """
    table = np.asarray(similarity, dtype=np.float64)
    table = (table + table.T) / 2
    finite = table[np.isfinite(table)]
    table = np.where(np.isfinite(table), table, finite.min() if finite.size else 0.0)
    groups = [[place] for place in range(len(table))]
    while len(groups) > 1:
        means = np.array([[table[np.ix_(a, b)].mean() for b in groups] for a in groups])
        np.fill_diagonal(means, -np.inf)
        one, other = sorted(np.unravel_index(int(means.argmax()), means.shape))
        joined = _joined(groups[one], groups[other], table)
        groups = [group for place, group in enumerate(groups) if place not in (one, other)] + [joined]
    return groups[0] if groups else []


def _joined(a: list[int], b: list[int], table: np.ndarray) -> list[int]:
    """The two groups side by side, each either way round, so that the most similar ends meet."""
    ways = [(x, y) for x in (a, a[::-1]) for y in (b, b[::-1])]
    ways += [(y, x) for x, y in ways]
    left, right = max(ways, key=lambda way: table[way[0][-1], way[1][0]])
    return [*left, *right]
