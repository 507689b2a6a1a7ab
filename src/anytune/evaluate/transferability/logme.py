"""LogME: how well a Bayesian linear model of these features explains the labels.

y [N] is one label column (one-hot for each class, the numbers themselves for regression) and F [N, d] the features of
the target's texts under a source prompt. With weights w ~ N(0, 1/alpha I) and noise of precision beta,

    log p(y | F, alpha, beta) = log N(y; 0, I / beta + F F^T / alpha)

is maximised over alpha and beta, divided by N and averaged over the columns. No prompt of the target is needed.

For a given ratio t = alpha / beta the best noise is known, s^2(t) = 1/N y^T (I + F F^T / t)^-1 y, which leaves a
curve in one number: -1/2 (log(2 pi s^2) + 1) - 1/(2N) sum_i log(1 + sigma_i / t), with sigma_i the eigenvalues of
F F^T. It is looked at on a grid of t over twenty decades and refined around its best point, so it cannot stop at a
lesser maximum, as the usual fixed-point iteration may.

Source: You et al. 2021 (LogME: Practical Assessment of Pre-trained Models for Transfer Learning). Choice of ours:
where labels are an exact linear function of fewer than N features the evidence has no bound, and the end of the grid
is what is reported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.evaluate.transferability.inputs import labelled

_DECADES = 10.0
_GRID = 121
_REFINED = 48


def logme(features: Any, labels: Any, *, classes: int | None) -> float:
    """Log evidence a row, in nats, at its maximum; higher is better, any sign.

    Args:
        features: [N, d].
        labels: [N], class numbers, or numbers where ``classes`` is None.
        classes: number of classes; those that do not occur play no part.

    Raises:
        DataError: see :func:`anytune.evaluate.transferability.inputs.labelled`.
    """
    rows, given = labelled(features, labels, classes)
    columns = given[:, None] if classes is None else (given[:, None] == np.unique(given)).astype(np.float64)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    spectrum = singular**2
    inside = (left.T @ columns) ** 2  # [r, C]
    outside = np.maximum((columns**2).sum(axis=0) - inside.sum(axis=0), 0.0)
    count, largest = len(rows), float(spectrum.max())

    def evidence(log_ratio: np.ndarray) -> np.ndarray:
        """[..., C] at log t of the same shape."""
        ratio = np.exp(log_ratio)[..., None, :]
        noise = ((inside * (ratio / (ratio + spectrum[:, None]))).sum(axis=-2) + outside) / count
        spread = np.log1p(spectrum[:, None] / ratio).sum(axis=-2) / (2 * count)
        return np.asarray(-0.5 * (np.log(2 * np.pi * np.maximum(noise, 1e-300)) + 1) - spread)

    middle = np.log(largest) if largest > 0 else 0.0
    grid = middle + np.log(10.0) * np.linspace(-_DECADES, _DECADES, _GRID)
    seen = evidence(np.repeat(grid[:, None], columns.shape[1], axis=1))
    best = seen.argmax(axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, _GRID - 1)]
    golden = (np.sqrt(5.0) - 1) / 2
    for _ in range(_REFINED):
        first, second = high - golden * (high - low), low + golden * (high - low)
        lower = evidence(first) < evidence(second)
        low, high = np.where(lower, first, low), np.where(lower, high, second)
    return float(np.maximum(evidence((low + high) / 2), seen.max(axis=0)).mean())
