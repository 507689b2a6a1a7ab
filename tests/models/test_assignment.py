"""The assignment problem against all permutations, and what must not move."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from anytune.errors import DeltaError
from anytune.models.assignment import assign


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (6, 6), (3, 6), (6, 3), (2, 5)])
def test_no_other_assignment_has_a_larger_sum(seed, rows, columns):
    scores = drawn(seed, rows, columns)
    # integers make ties, which a wrong treatment of prices stumbles over
    scores = (scores * 2).round() if seed % 2 else scores
    found = assign(scores)
    chosen = [column for column in found.tolist() if column >= 0]
    assert len(set(chosen)) == len(chosen) == min(rows, columns)
    total = sum(float(scores[row, column]) for row, column in enumerate(found.tolist()) if column >= 0)
    wide = scores if rows <= columns else scores.T
    best = max(
        sum(float(wide[row, column]) for row, column in enumerate(order))
        for order in permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert total == pytest.approx(best, abs=1e-9)


def test_the_larger_problem_has_prices_that_prove_it():
    """A planted permutation is found again under noise that never makes another one better."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    scores = drawn(1, 300, 300).clamp(-2, 2)
    scores[torch.arange(300), order] += 20
    assert torch.equal(assign(scores), order)


def test_what_is_as_good_where_it_stands_stays_there():
    assert assign(torch.ones(5, 5)).tolist() == [0, 1, 2, 3, 4]


def test_numbers_that_are_none_are_refused():
    with pytest.raises(DeltaError, match="NaN"):
        assign(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
