"""Which row goes with which column so that the sum is largest: the assignment problem, solved exactly.

Shortest augmenting paths (Kuhn 1955; Jonker, Volgenant 1987) after a cheap start: where most rows have a column of
their own that is best for both, as the neurons of a base and of its upgrade have, nearly nothing is left to search.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anytune.errors import DeltaError


def assign(scores: Tensor) -> Tensor:
    """For each row the column it is given, no column twice, so that the sum of ``scores[i, column[i]]`` is largest.

    Where leaving row i with column i is as good, up to rounding, that is the answer: nothing moves without need.

    Args:
        scores: ``[rows, columns]``, finite, on any device; more is better.

    Returns:
        int64 ``[rows]`` on the CPU; -1 for rows that get none, where there are more rows than columns.

    Raises:
        DeltaError: a score is NaN or infinite.
    """
    table = scores.detach().double().cpu().numpy()
    if not np.isfinite(table).all():
        raise DeltaError("a similarity is NaN or infinite", why="Nothing can be matched by it.",
                         fix="a base whose weights are finite: make it or fetch it again")  # fmt: skip
    rows, columns = table.shape
    size = max(rows, columns)
    costs = np.zeros((size, size))  # what is paired with a row or column that does not exist costs nothing
    costs[:rows, :columns] = -table
    found = _cheapest(costs)[:rows]
    found[found >= columns] = -1
    if rows == columns:
        kept, best = np.trace(table), table[np.arange(rows), found].sum()
        if kept >= best - 1e-12 * np.abs(table).sum():
            found = np.arange(rows)
    return torch.from_numpy(found.astype(np.int64))


def _cheapest(costs: np.ndarray) -> np.ndarray:
    """The column of each row [n] of the cheapest assignment of a square matrix [n, n].

    ``prices`` of rows and columns never add up to more than a cost, and to just the cost where the two are paired:
    that is the proof that no other assignment is cheaper.
    """
    count = len(costs)
    of_column = costs.min(axis=0)
    reduced = costs - of_column
    of_row, nearest = reduced.min(axis=1), reduced.argmin(axis=1)
    column_of, row_of = np.full(count, -1), np.full(count, -1)
    for first, column in enumerate(nearest.tolist()):
        if row_of[column] < 0:
            column_of[first], row_of[column] = column, first
    for row in np.flatnonzero(column_of < 0).tolist():
        _augment(row, costs, of_row, of_column, column_of, row_of)
    return column_of


def _augment(
    start: int, costs: np.ndarray, of_row: np.ndarray, of_column: np.ndarray, column_of: np.ndarray,
    row_of: np.ndarray,
) -> None:  # fmt: skip
    """Pair one more row, along the shortest path of exchanges that ends at a free column; all given are changed."""
    length = costs[start] - of_row[start] - of_column
    before = np.full(len(costs), start)  # the row from which a column was reached
    done = np.zeros(len(costs), dtype=bool)
    while True:
        column = int(np.where(done, np.inf, length).argmin())
        shortest = length[column]
        done[column] = True
        if row_of[column] < 0:
            break
        row = row_of[column]
        through = shortest + costs[row] - of_row[row] - of_column
        shorter = ~done & (through < length)
        length[shorter], before[shorter] = through[shorter], row
    passed = np.flatnonzero(done)
    taken = passed[passed != column]
    of_row[start] += shortest
    of_row[row_of[taken]] += shortest - length[taken]
    of_column[passed] -= shortest - length[passed]
    while True:
        row = int(before[column])
        row_of[column] = row
        column_of[row], column = column, int(column_of[row])
        if row == start:
            return
