"""H-score and TransRate: how far classes stand apart in the features, against how far features spread.

    H = tr(S^-1 B),   S the covariance of the features, B that of the class means g(y) = E[f | y]

With more features than rows S cannot be inverted, so it is shrunk, S_a = (1 - a) S + a tr(S)/d I with Ledoit and
Wolf's a, and H = (1 - a) tr(S_a^-1 B): 0 where class means agree, at most the number of classes - 1.

    TransRate = R(Z) - sum_c n_c/N R(Z_c),   R(Z) = 1/2 log det(I + 1/(n eps) Z^T Z)

is what coding all rows (centred, of mean square length 1) takes beyond coding each class by itself, in nats, at
distortion eps.

Sources: Bao et al. 2019 (An Information-Theoretic Approach to Transferability), shrunk by Ibrahim et al. 2021 (Newer
is not always better); Huang et al. 2022 (Frustratingly Easy Transferability Estimation). Both know classes; for
numbers use :func:`anytune.evaluate.transferability.inputs.binned`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.evaluate.transferability.inputs import labelled


def h_score(features: Any, labels: Any, *, classes: int) -> float:
    """The regularised H-score, at least 0; higher is better. Does not depend on rotation or scale of the features.

    Args:
        features: [N, d].
        labels: [N], class numbers.
        classes: number of classes.
    """
    rows, given = labelled(features, labels, classes)
    rows = rows - rows.mean(axis=0)
    scale = float(np.abs(rows).max())
    if scale <= 0:
        return 0.0
    rows /= scale
    share = shrinkage(rows)
    covariance = rows.T @ rows / len(rows)
    width = covariance.shape[0]
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / width * np.eye(width)
    means, counts = _class_means(rows, given)
    solved = np.linalg.lstsq(shrunk, means.T, rcond=None)[0]  # [d, C]; without shrinkage it may be singular
    return float((1 - share) * ((means * solved.T).sum(axis=1) * counts / len(rows)).sum())


def shrinkage(rows: np.ndarray) -> float:
    """Ledoit and Wolf's (2004) share a in [0, 1] of the identity, for centred ``rows`` [N, d]."""
    count, width = rows.shape
    covariance = rows.T @ rows / count
    square = float((covariance**2).sum())
    distance = (square - float(np.trace(covariance)) ** 2 / width) / width
    noise = (float(((rows**2).sum(axis=1) ** 2).sum()) / count - square) / (count * width)
    return float(min(max(noise, 0.0), distance) / distance) if distance > 0 else 0.0


def trans_rate(features: Any, labels: Any, *, classes: int, distortion: float = 1e-4) -> float:
    """TransRate in nats; higher is better.

    Args:
        features: [N, d].
        labels: [N], class numbers.
        classes: number of classes.
        distortion: eps, on features of mean square length 1.
    """
    rows, given = labelled(features, labels, classes)
    rows = rows - rows.mean(axis=0)
    length = float(np.sqrt((rows**2).sum(axis=1).mean()))
    if length <= 0:
        return 0.0
    rows /= length
    parts = [rows[given == one] for one in np.unique(given)]
    return _rate(rows, distortion) - sum(len(part) / len(rows) * _rate(part, distortion) for part in parts)


def _rate(rows: np.ndarray, distortion: float) -> float:
    # the smaller of the two products has the same determinant
    product = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return 0.5 * float(np.linalg.slogdet(np.eye(len(product)) + product / (len(rows) * distortion))[1])


def _class_means(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [C, d] of the classes that occur, and how many rows each has [C]."""
    members = np.eye(int(labels.max()) + 1)[:, np.unique(labels)][labels]
    counts = members.sum(axis=0)
    return members.T @ rows / counts[:, None], counts
