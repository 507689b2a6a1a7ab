"""Metrics as pure numpy functions: predictions and gold labels in, one number out.

Conventions, the same as scikit-learn's where it has one:

- F1 averages run over the classes that occur in the gold labels or in the predictions;
- Matthews correlation is the many-class R_K (Gorodkin 2004), 0.0 where predictions or gold labels are constant;
- Pearson and Spearman are 0.0 where either side is constant (scikit-learn and scipy give NaN): a model that answers
  the same to everything has learned nothing, and a NaN could not be ranked, averaged or stored;
- Spearman ranks ties by their mean rank.

Every function raises ``DataError`` for sequences that are empty, of different length, or hold NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anytune.errors import DataError, SettingsError, unknown

Values = Sequence[int] | Sequence[float] | np.ndarray


def accuracy(predicted: Values, gold: Values) -> float:
    """Share of predictions equal to the gold label, in [0, 1]."""
    predicted, gold = _classes(predicted, gold)
    return float((predicted == gold).mean())


def macro_f1(predicted: Values, gold: Values) -> float:
    """F1 of each class, averaged with equal weight over the classes that occur in gold or predictions, in [0, 1]."""
    predicted, gold = _classes(predicted, gold)
    both = np.bincount(gold[predicted == gold], minlength=int(max(predicted.max(), gold.max())) + 1)
    total = np.bincount(predicted, minlength=len(both)) + np.bincount(gold, minlength=len(both))
    occurs = total > 0
    return float((2 * both[occurs] / total[occurs]).mean())


def micro_f1(predicted: Values, gold: Values) -> float:
    """F1 over all decisions pooled, in [0, 1]; with one label to a text this equals accuracy."""
    return accuracy(predicted, gold)


def matthews(predicted: Values, gold: Values) -> float:
    """Matthews correlation for any number of classes, in [-1, 1]; 0.0 where predictions or gold are constant.

    R_K = (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2)) with s rows, c of them right, p_k times
    class k predicted and t_k times class k true.
    """
    predicted, gold = _classes(predicted, gold)
    width = int(max(predicted.max(), gold.max())) + 1
    # float: the squares of large counts would overflow int64 only at 3e9 rows, but sums of products come earlier
    guessed = np.bincount(predicted, minlength=width).astype(np.float64)
    true = np.bincount(gold, minlength=width).astype(np.float64)
    rows, right = float(len(gold)), float((predicted == gold).sum())
    spread = (rows**2 - guessed @ guessed) * (rows**2 - true @ true)
    return float((right * rows - guessed @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(predicted: Values, gold: Values) -> float:
    """Linear correlation, in [-1, 1]; 0.0 where either side is constant."""
    left, right = (_unit(side) for side in _numbers(predicted, gold))
    return float(np.clip(left @ right, -1.0, 1.0))


def spearman(predicted: Values, gold: Values) -> float:
    """Correlation of ranks (ties share their mean rank), in [-1, 1]; 0.0 where either side is constant."""
    predicted, gold = _numbers(predicted, gold)
    return pearson(_ranks(predicted), _ranks(gold))


def pearson_spearman(predicted: Values, gold: Values) -> float:
    """Mean of Pearson and Spearman correlation, as STS-B is reported in GLUE."""
    return (pearson(predicted, gold) + spearman(predicted, gold)) / 2


def mse(predicted: Values, gold: Values) -> float:
    """Mean squared error, in squared units of the label; lower is better."""
    predicted, gold = _numbers(predicted, gold)
    return float(((predicted - gold) ** 2).mean())


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: what ``--metric`` takes.
        kind: the kind of task it scores.
        function: (predicted, gold) -> number.
        description: one line for lists.
        higher_is_better: False for errors.
        companions: metrics always reported beside it.
    """

    name: str
    kind: Literal["classification", "regression"]
    function: Callable[[Values, Values], float]
    description: str
    higher_is_better: bool = True
    companions: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "classification", accuracy, "share of right answers", companions=("macro_f1",)),
        Metric("macro_f1", "classification", macro_f1, "F1 averaged over classes", companions=("accuracy",)),
        Metric("micro_f1", "classification", micro_f1, "F1 over all decisions", companions=("macro_f1",)),
        Metric(
            "matthews",
            "classification",
            matthews,
            "Matthews correlation, fair to rare classes",
            companions=("accuracy", "macro_f1"),
        ),
        Metric("pearson", "regression", pearson, "linear correlation", companions=("spearman",)),
        Metric("spearman", "regression", spearman, "correlation of ranks", companions=("pearson",)),
        Metric(
            "pearson_spearman",
            "regression",
            pearson_spearman,
            "mean of Pearson and Spearman, as STS-B is reported",
            companions=("pearson", "spearman"),
        ),
        Metric(
            "mse",
            "regression",
            mse,
            "mean squared error, lower is better",
            higher_is_better=False,
            companions=("pearson", "spearman"),
        ),
    )
}


def default_metric(kind: str) -> str:
    """The metric of a task for which none was chosen: "accuracy", or "pearson" for regression."""
    return "pearson" if kind == "regression" else "accuracy"


def score(metric_name: str, predicted: Values, gold: Values, label_count: int | None = None) -> dict[str, float]:
    """The named metric first, then its companions.

    Args:
        metric_name: a key of ``METRICS``.
        predicted: label indices (classification) or numbers (regression), one a row.
        gold: the same of the true labels.
        label_count: number of classes; given, indices outside ``range(label_count)`` are refused.

    Raises:
        SettingsError: the metric is unknown.
        DataError: the sequences are unusable (see the module) or hold an index outside the classes.
    """
    if metric_name not in METRICS:
        raise unknown("metric", metric_name, METRICS, SettingsError)
    metric = METRICS[metric_name]
    if metric.kind == "classification" and label_count:
        for side, values in zip(("predicted", "gold"), _classes(predicted, gold), strict=True):
            if values.max() >= label_count:
                raise DataError(
                    f"{side} label {int(values.max())} is outside the {label_count} classes of the task",
                    why="Labels are indices into the label names, counted from 0.",
                )
    return {name: METRICS[name].function(predicted, gold) for name in (metric_name, *metric.companions)}


def _numbers(predicted: Values, gold: Values) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 [rows], checked."""
    sides = []
    for name, values in (("predicted", predicted), ("gold", gold)):
        try:
            side = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{name} values are not numbers", why="Metrics compare numbers or label indices."
            ) from None
        if side.ndim != 1:
            raise DataError(f"{name} values have shape {side.shape}", why="Metrics take one number a row.")
        sides.append(side)
    left, right = sides
    if len(left) != len(right):
        raise DataError(f"{len(left)} predictions for {len(right)} gold labels", why="Each row needs one of either.")
    if not len(left):
        raise DataError("there is nothing to score: no predictions", why="A score needs at least one row.")
    for name, side in (("predicted", left), ("gold", right)):
        bad = np.flatnonzero(~np.isfinite(side))
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(side)} {name} values are not finite, the first in row {bad[0]}: {side[bad[0]]}",
                why="A score over NaN or infinity says nothing.",
                fix="a lower learning rate, if the model made them" if name == "predicted" else "",
            )
    return left, right


def _classes(predicted: Values, gold: Values) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as label indices int64 [rows], checked."""
    sides = _numbers(predicted, gold)
    for name, side in zip(("predicted", "gold"), sides, strict=True):
        bad = np.flatnonzero((side < 0) | (side != np.floor(side)))
        if len(bad):
            raise DataError(
                f"{name} value {side[bad[0]]:g} in row {bad[0]} is no label index",
                why="Classes are whole numbers from 0.",
                fix="a regression metric: pearson" if side[bad[0]] != np.floor(side[bad[0]]) else "",
            )
    return sides[0].astype(np.int64), sides[1].astype(np.int64)


def _unit(values: np.ndarray) -> np.ndarray:
    """Values centred and scaled to length 1; zeros for constant values."""
    if values.max() == values.min():
        return np.zeros_like(values)
    values = values / np.abs(values).max()  # so that neither huge nor tiny values leave the range of floats
    centred = values - values.mean()
    length = np.sqrt(centred @ centred)
    return centred / length if length > 0 else centred


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean rank."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]
