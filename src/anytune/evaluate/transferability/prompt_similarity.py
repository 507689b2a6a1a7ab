"""Similarity of two prompts by their numbers alone: no text is read.

P [n, w] and Q [m, w] hold one row a prompt position; of reparametrised prompts the values after the projection.

    mean_cosine       cos(mean_j p_j, mean_j q_j)              the order of positions plays no part; any n and m
    flat_cosine       cos(vec P, vec Q)                        n = m
    pairwise_cosine   1/(n m) sum_ij cos(p_i, q_j)             with itself below 1 unless all rows are parallel
    max_pairwise      1/n sum_i max_j <p_i, q_j>               not symmetric; an inner product, so it has a scale
    euclidean_flat    1 / (1 + |vec P - vec Q|)                n = m
    euclidean_pairwise  1 / (1 + 1/(n m) sum_ij |p_i - q_j|)

Sources: Vu et al. 2022 (SPoT) for cosines of mean and of all pairs of rows; Su et al. 2022 (On Transferability of
Prompt Tuning) for the Euclidean ones, E_avg in their words; Lin et al. 2024 for the maximal inner product. PANDA's
E_avg has a diagonal of 1 and goes below 0, so it is no average over pairs and no distance: we read it as mean_cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anytune.errors import DataError
from anytune.evaluate.transferability.inputs import cosine, matrix, unit_rows


def mean_cosine(source: Any, target: Any) -> float:
    """Cosine of the mean rows, in [-1, 1]."""
    left, right = _prompts(source, target)
    return float(cosine(left.mean(axis=0)[None], right.mean(axis=0)[None])[0, 0])


def flat_cosine(source: Any, target: Any) -> float:
    """Cosine of all numbers in a row, in [-1, 1].

    Raises:
        DataError: the prompts differ in length.
    """
    left, right = _prompts(source, target, equal=True)
    return float(cosine(left.reshape(1, -1), right.reshape(1, -1))[0, 0])


def pairwise_cosine(source: Any, target: Any) -> float:
    """Mean cosine over all pairs of rows, in [-1, 1]."""
    left, right = _prompts(source, target)
    # the mean over pairs of <u_i, v_j> is the product of the mean unit rows
    return float(np.clip(unit_rows(left).mean(axis=0) @ unit_rows(right).mean(axis=0), -1.0, 1.0))


def max_pairwise(source: Any, target: Any) -> float:
    """Mean over the source's rows of the largest inner product with a row of the target; any number."""
    left, right = _prompts(source, target)
    return float((left @ right.T).max(axis=1).mean())


def euclidean_flat(source: Any, target: Any) -> float:
    """1 / (1 + distance) of all numbers in a row, in (0, 1].

    Raises:
        DataError: the prompts differ in length.
    """
    left, right = _prompts(source, target, equal=True)
    return float(1 / (1 + np.linalg.norm(left - right)))


def euclidean_pairwise(source: Any, target: Any) -> float:
    """1 / (1 + mean distance over all pairs of rows), in (0, 1]; of a prompt with itself below 1 as a rule."""
    left, right = _prompts(source, target)
    distances = [float(np.linalg.norm(right - row, axis=1).mean()) for row in left]
    return float(1 / (1 + np.mean(distances)))


#: What ``prompt_...`` names mean; each takes (source [n, w], target [m, w]).
KINDS: dict[str, Callable[[Any, Any], float]] = {
    "mean_cosine": mean_cosine,
    "flat_cosine": flat_cosine,
    "pairwise_cosine": pairwise_cosine,
    "max_pairwise": max_pairwise,
    "euclidean_flat": euclidean_flat,
    "euclidean_pairwise": euclidean_pairwise,
}


def _prompts(source: Any, target: Any, *, equal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    left, right = matrix(source, "the source prompt"), matrix(target, "the target prompt")
    if left.shape[1] != right.shape[1]:
        raise DataError(
            f"prompts of width {left.shape[1]} and {right.shape[1]}",
            why="Prompts of different bases or kinds (deep, input) cannot be compared by their numbers.",
        )
    if equal and len(left) != len(right):
        raise DataError(
            f"prompts of {len(left)} and {len(right)} positions",
            why="Position is held against position.",
            fix="mean_cosine, which takes any lengths",
        )
    return left, right
