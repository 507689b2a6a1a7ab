"""LEEP and NCE: do the answers of the source's own head tell the target's labels apart?

theta(x)_z is the probability that the source model (prompt and head) gives its class z on the target text x, y the
target's label. The empirical joint is P(y, z) = 1/N sum_{i: y_i = y} theta(x_i)_z, and

    LEEP = 1/N sum_i log sum_z P(y_i | z) theta(x_i)_z        NCE = -H(Y | Z) = sum_{y, z} P(y, z) log P(y | z)

where for NCE z is the source's one answer (its largest probability). Both are at most 0, in nats; higher is better.

Sources: Nguyen et al. 2020 (LEEP), Tran et al. 2019 (Transferability and Hardness of Supervised Classification Tasks).
A source of one label column (regression) has no classes, and neither measure.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.errors import DataError
from anytune.evaluate.transferability.inputs import class_numbers, matrix


def leep(source_probabilities: Any, labels: Any, *, classes: int) -> float:
    """LEEP, in nats a row, at most 0.

    Args:
        source_probabilities: [N, Z], rows that sum to 1.
        labels: [N], class numbers of the target.
        classes: number of the target's classes.

    Raises:
        DataError: rows are no distributions, lengths differ, or all labels are equal.
    """
    theta, given = _pair(source_probabilities, labels, classes)
    joint = _joint(theta, given, classes)
    expected = theta @ _conditional(joint).T  # [N, Y]: sum_z P(y | z) theta_z
    return float(np.log(np.maximum(expected[np.arange(len(given)), given], 1e-300)).mean())


def nce(source_probabilities: Any, labels: Any, *, classes: int) -> float:
    """Negative conditional entropy of the labels given the source's answers, in nats, at most 0.

    Args:
        source_probabilities: [N, Z]; each row counts as its largest entry (the first of equal ones).
        labels: [N], class numbers of the target.
        classes: number of the target's classes.
    """
    theta, given = _pair(source_probabilities, labels, classes)
    answers = np.eye(theta.shape[1])[theta.argmax(axis=1)]
    joint = _joint(answers, given, classes)
    return float((joint * np.log(np.where(joint > 0, _conditional(joint), 1.0))).sum())


def _pair(source_probabilities: Any, labels: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    theta, given = matrix(source_probabilities, "source probabilities"), class_numbers(labels, classes)
    if len(theta) != len(given):
        raise DataError(f"{len(given)} labels for {len(theta)} answers of the source", why="Each row needs one.")
    if (theta < 0).any() or np.abs(theta.sum(axis=1) - 1).max() > 1e-3:
        raise DataError(
            "source probabilities that are below 0 or do not sum to 1",
            why="LEEP reads them as a distribution over the source's classes.",
            fix="the softmax of its logits",
        )
    return theta, given


def _joint(theta: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """P(y, z) [Y, Z]."""
    return np.asarray(np.eye(classes)[labels].T @ theta / len(labels))


def _conditional(joint: np.ndarray) -> np.ndarray:
    """P(y | z) [Y, Z]; columns of classes the source never gives are 0."""
    total = joint.sum(axis=0)
    return np.asarray(joint / np.where(total > 0, total, 1))
