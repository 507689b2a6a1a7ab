"""What the measures take: rows of finite numbers, and labels that fit them, checked once and said clearly."""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.errors import DataError


def matrix(values: Any, name: str, *, dimensions: int = 2) -> np.ndarray:
    """``values``, an array or a tensor on any device, as float64.

    Args:
        name: what an error calls it.
        dimensions: how many it must have.

    Raises:
        DataError: another shape, nothing in it, or NaN or infinity.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    made = np.asarray(values, dtype=np.float64)
    if made.ndim != dimensions or not made.size:
        raise DataError(f"{name} of shape {made.shape}", why=f"Wanted are numbers in {dimensions} dimensions.")
    bad = int((~np.isfinite(made)).sum())
    if bad:
        raise DataError(
            f"{bad} of {made.size} numbers of {name} are not finite",
            why="A similarity to NaN or infinity says nothing.",
            fix="leaving it out, or tuning it again at a lower learning rate",
        )
    return made


def labelled(features: Any, labels: Any, classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, d] float64 and labels [N], int64 class numbers or float64 where ``classes`` is None.

    Raises:
        DataError: lengths differ, a label is no class, fewer than two classes occur, or all numbers are equal.
    """
    rows = matrix(features, "features")
    given = matrix(labels, "labels", dimensions=1)
    if len(given) != len(rows):
        raise DataError(f"{len(given)} labels for {len(rows)} rows of features", why="Each row needs one.")
    if classes is None:
        if given.max() == given.min():
            raise DataError(
                f"all {len(given)} labels are {given[0]:g}", why="Nothing can be told apart by a constant label."
            )
        return rows, given
    return rows, class_numbers(given, classes)


def class_numbers(labels: Any, classes: int) -> np.ndarray:
    """Labels [N] as int64, at least two classes among them.

    Raises:
        DataError: one is not among 0 .. classes - 1, or all are equal.
    """
    given = matrix(labels, "labels", dimensions=1)
    bad = given[(given < 0) | (given >= classes) | (given != np.floor(given))]
    if len(bad):
        raise DataError(
            f"label {bad[0]:g} is outside the {classes} classes",
            why="Classes are whole numbers from 0; tokens with the label -100 have to be left out first.",
        )
    found = given.astype(np.int64)
    if (found == found[0]).all():
        raise DataError(
            f"all {len(found)} labels are class {found[0]}",
            why="A measure that looks at labels needs two classes to tell apart.",
            fix="more rows, or a measure without labels: task_cosine",
        )
    return found


def binned(labels: Any, bins: int = 5) -> np.ndarray:
    """Numbers [N] as classes 0 .. bins - 1 of about equal size, for the measures that know classes alone.

    Equal numbers fall into one bin, so there may be fewer bins than asked for.
    """
    given = matrix(labels, "labels", dimensions=1)
    edges = np.unique(np.quantile(given, np.linspace(0, 1, bins + 1)[1:-1]))
    _, dense = np.unique(np.searchsorted(edges, given, side="right"), return_inverse=True)
    return np.asarray(dense, dtype=np.int64)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines [S, T] of the rows of ``a`` [S, d] and ``b`` [T, d], in [-1, 1]; 0 where a row is zero."""
    return np.clip(unit_rows(a) @ unit_rows(b).T, -1.0, 1.0)


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    largest = np.abs(values).max(axis=-1, keepdims=True)  # first, so that squares neither overflow nor vanish
    values = values / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.where(length > 0, length, 1))
