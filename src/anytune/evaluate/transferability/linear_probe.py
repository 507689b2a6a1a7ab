"""A linear probe by folds: what a ridge classifier reads off the features of texts it was not fitted on.

The rows are dealt into k folds, each class evenly. For each fold the probe (:mod:`anytune.evaluate.probing`) is fitted
on k - 2 of the others, its penalty chosen on the one left, and the fold answered; the score is that of all answers
together. So no row is scored by what has seen it, and the choice of the penalty flatters nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.errors import DataError, SettingsError, unknown
from anytune.evaluate.probing import Features, probe
from anytune.evaluate.scores import higher_is_better
from anytune.evaluate.transferability.inputs import labelled
from anytune.metrics import METRICS


def linear_probe(
    features: Any, labels: Any, *, classes: int | None, metric: str | None = None, folds: int = 5, seed: int = 0
) -> float:
    """Score of out-of-fold answers, higher is better: errors (mse) come with a minus sign.

    Args:
        features: [N, d].
        labels: [N], class numbers, or numbers where ``classes`` is None.
        metric: of classification or regression; by default accuracy and pearson.
        folds: at least 3; with fewer rows than folds, one row each.
        seed: deals the rows.

    Raises:
        DataError: fewer than three rows, or see :func:`anytune.evaluate.transferability.inputs.labelled`.
        SettingsError: fewer than three folds, or a metric that does not go with the labels.
    """
    rows, given = labelled(features, labels, classes)
    if folds < 3:
        raise SettingsError(
            f"folds={folds}", why="One fold is answered, one chooses, the rest is fitted.", fix="folds=5"
        )
    if len(rows) < 3:
        raise DataError(f"a linear probe on {len(rows)} rows", why="It takes three: to fit, to choose and to answer.")
    name = metric or ("pearson" if classes is None else "accuracy")
    wanted = "regression" if classes is None else "classification"
    if name not in METRICS or METRICS[name].kind != wanted:
        raise unknown(
            f"metric for {wanted}", name, [one for one in METRICS if METRICS[one].kind == wanted], SettingsError
        )
    sign = 1.0 if higher_is_better(name) else -1.0

    def better(predicted: np.ndarray, gold: np.ndarray) -> float:
        return sign * METRICS[name].function(predicted, gold)

    folds = min(folds, len(rows))
    order = np.random.default_rng(seed).permutation(len(rows))
    if classes is not None:
        order = order[np.argsort(given[order], kind="stable")]
    fold = np.empty(len(rows), dtype=np.int64)
    fold[order] = np.arange(len(rows)) % folds
    predicted = np.empty(len(rows))
    for asked in range(folds):
        chooses = (asked + 1) % folds
        parts = (~np.isin(fold, (asked, chooses)), fold == chooses, fold == asked)
        split = [Features(rows[part], given[part]) for part in parts]
        predicted[parts[2]] = probe(*split, classes=classes, better=better).predicted
    return better(predicted, given)
