"""Metrics as pure functions: predictions and gold labels in, one number out.

What the two sides are depends on the kind of task:

    classification, regression   one number a row
    token-classification         one list of tag indices a sentence, one index a word; ``label_names`` beside them
    generation                   one string a row; for perplexity the mean loss of the responses instead

Conventions, the same as scikit-learn's where it has one:

- F1 averages run over the classes that occur in the gold labels or in the predictions;
- Matthews correlation is the many-class R_K (Gorodkin 2004), 0.0 where predictions or gold labels are constant;
- Pearson and Spearman are 0.0 where either side is constant (scikit-learn and scipy give NaN): a model that answers
  the same to everything has learned nothing, and a NaN could not be ranked, averaged or stored;
- Spearman ranks ties by their mean rank;
- entities are counted as the script of the CoNLL shared tasks counts them: an entity begins at B-X, and at an I-X that
  follows O, another type or the beginning of the sentence; it is right if its type and both ends are; F1 is 0.0 where
  neither side has an entity.

Every function raises ``DataError`` for sequences that are empty, of different length, or hold NaN or infinity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anytune.errors import DataError, SettingsError, unknown

Kind = Literal["classification", "regression", "token-classification", "generation"]
Values = Sequence[int] | Sequence[float] | np.ndarray
#: One list of tag indices a sentence.
Tags = Sequence[Sequence[int]]
_BIO_TAG = re.compile(r"O|[BI](-.*)?")
#: exp of a larger loss is no finite float
_LARGEST_LOSS = 709.0


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


def are_entity_tags(label_names: Sequence[str]) -> bool:
    """Whether tags look like BIO: "O" beside tags that begin with "B-" or "I-"."""
    return "O" in label_names and len(label_names) > 1 and all(map(_BIO_TAG.fullmatch, label_names))


def f1_entities(predicted: Tags, gold: Tags, label_names: Sequence[str]) -> float:
    """F1 over whole entities of all sentences pooled (micro), in [0, 1]; 0.0 where neither side has one.

    Args:
        predicted: tag indices, one list a sentence, one index a word.
        gold: the same of the true tags.
        label_names: "O", "B-X", "I-X" ... by index.

    Raises:
        SettingsError: the tags do not look like BIO.
        DataError: sentences differ in number or length, or an index is none of the tags.
    """
    guessed, true = (_entities(side, label_names) for side in _tags(predicted, gold, len(label_names)))
    return 2 * len(guessed & true) / max(1, len(guessed) + len(true))


def accuracy_tokens(predicted: Tags, gold: Tags) -> float:
    """Share of words with the right tag, over all sentences pooled, in [0, 1].

    Args:
        predicted: tag indices, one list a sentence, one index a word.
        gold: the same of the true tags.
    """
    guessed, true = (np.concatenate(side) for side in _tags(predicted, gold))
    return float((guessed == true).mean())


def exact_match(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Share of texts equal to the gold text once white space at both ends is gone, in [0, 1]."""
    if len(predicted) != len(gold):
        raise DataError(
            f"{len(predicted)} predictions for {len(gold)} gold texts", why="Each row needs one of either."
        )
    if not len(gold):
        raise DataError("there is nothing to score: no predictions", why="A score needs at least one row.")
    return sum(left.strip() == right.strip() for left, right in zip(predicted, gold, strict=True)) / len(gold)


def perplexity(mean_loss: float) -> float:
    """exp of the mean loss in nats over the tokens of the responses, at least 1; lower is better."""
    if not mean_loss <= _LARGEST_LOSS:
        raise DataError(
            f"the mean loss is {mean_loss}",
            why="Its perplexity is no finite number.",
            fix="a lower learning rate, if the model made it",
        )
    return math.exp(mean_loss)


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: what ``--metric`` takes.
        kind: the kind of task it scores.
        function: (predicted, gold) -> number; ``f1_entities`` takes the tag names too, ``perplexity`` a mean loss.
        description: one line for lists.
        higher_is_better: False for errors.
        companions: metrics always reported beside it.
    """

    name: str
    kind: Kind
    function: Callable[..., float]
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
        Metric(
            "f1_entities",
            "token-classification",
            f1_entities,
            "F1 over whole entities (BIO tags), as CoNLL counts",
            companions=("accuracy_tokens",),
        ),
        Metric("accuracy_tokens", "token-classification", accuracy_tokens, "share of words with the right tag"),
        Metric(
            "exact_match",
            "generation",
            exact_match,
            "share of responses equal to the gold one",
            companions=("perplexity",),
        ),
        Metric(
            "perplexity",
            "generation",
            perplexity,
            "exp of the mean loss of the responses, lower is better",
            higher_is_better=False,
        ),
    )
}


def default_metric(kind: str, label_names: Sequence[str] = ()) -> str:
    """The metric of a task for which none was chosen.

    "accuracy"; "pearson" for regression; "exact_match" for generation; for token-classification "f1_entities" where
    the tags ``label_names`` look like BIO, else "accuracy_tokens".
    """
    if kind == "token-classification":
        return "f1_entities" if are_entity_tags(label_names) else "accuracy_tokens"
    return {"regression": "pearson", "generation": "exact_match"}.get(kind, "accuracy")


def score(
    metric_name: str,
    predicted: Any,
    gold: Any,
    label_count: int | None = None,
    *,
    label_names: Sequence[str] = (),
    mean_loss: float | None = None,
) -> dict[str, float]:
    """The named metric first, then its companions.

        score("macro_f1", [0, 1], [0, 0], 2)                                           classification
        score("pearson", [0.5, 1.5], [0.0, 1.0])                                       regression
        score("f1_entities", [[0, 1, 2]], [[0, 1, 1]], label_names=("O", "B-X", "I-X"))  token-classification
        score("exact_match", ["a dog"], ["a cat"], mean_loss=2.5)                      generation
        score("perplexity", None, None, mean_loss=2.5)                                 generation, nothing generated

    Args:
        metric_name: a key of ``METRICS``.
        predicted: label indices (classification) or numbers (regression), one a row; a list of tag indices a sentence
            (token-classification); texts (generation; None for "perplexity").
        gold: the same of the true labels.
        label_count: number of classes; given, indices outside ``range(label_count)`` are refused.
        label_names: the tags by index (token-classification).
        mean_loss: nats a response token (generation); without it "perplexity" is no companion of "exact_match".

    Raises:
        SettingsError: the metric is unknown, or entities are to be counted in tags that are not BIO.
        DataError: the sequences are unusable (see the module) or hold an index outside the classes.
    """
    if metric_name not in METRICS:
        raise unknown("metric", metric_name, METRICS, SettingsError)
    metric = METRICS[metric_name]
    if metric.kind == "token-classification":
        return _score_tags(metric, predicted, gold, label_names)
    if metric.kind == "generation":
        return _score_texts(metric, predicted, gold, mean_loss)
    if metric.kind == "classification" and label_count:
        for side, values in zip(("predicted", "gold"), _classes(predicted, gold), strict=True):
            if values.max() >= label_count:
                raise DataError(
                    f"{side} label {int(values.max())} is outside the {label_count} classes of the task",
                    why="Labels are indices into the label names, counted from 0.",
                )
    return {name: METRICS[name].function(predicted, gold) for name in (metric_name, *metric.companions)}


def _score_tags(metric: Metric, predicted: Tags, gold: Tags, label_names: Sequence[str]) -> dict[str, float]:
    _tags(predicted, gold, len(label_names) or None)
    functions = {"f1_entities": lambda: f1_entities(predicted, gold, label_names)}
    return {
        name: functions.get(name, lambda: accuracy_tokens(predicted, gold))()
        for name in (metric.name, *metric.companions)
    }


def _score_texts(
    metric: Metric, predicted: Sequence[str], gold: Sequence[str], mean_loss: float | None
) -> dict[str, float]:
    scores = {}
    if metric.name == "exact_match":
        scores["exact_match"] = exact_match(predicted, gold)
    elif mean_loss is None:
        raise DataError("perplexity without a mean loss", why="It is exp of the mean loss of the response tokens.")
    if mean_loss is not None:
        scores["perplexity"] = perplexity(mean_loss)
    return scores


def _tags(predicted: Tags, gold: Tags, count: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both sides as tag indices, one int64 array a sentence, checked: as many sentences, words and known tags."""
    if len(predicted) != len(gold):
        raise DataError(f"{len(predicted)} predictions for {len(gold)} sentences", why="Each needs one of either.")
    uneven = [row for row, pair in enumerate(zip(predicted, gold, strict=True)) if len(pair[0]) != len(pair[1])]
    if uneven:
        row = uneven[0]
        raise DataError(
            f"sentence {row} has {len(gold[row])} tags and {len(predicted[row])} predictions",
            why="Each word needs one of either; words that were cut off count as the tag O.",
        )
    sides = tuple([np.asarray(tags, dtype=np.int64) for tags in side] for side in (predicted, gold))
    if not sum(map(len, sides[1])):
        raise DataError("there is nothing to score: no predictions", why="A score needs at least one word.")
    for name, side in zip(("predicted", "gold"), sides, strict=True):
        whole = np.concatenate(side)
        bad = whole[(whole < 0) | (whole >= count)] if count is not None else whole[whole < 0]
        if len(bad):
            raise DataError(
                f"{name} tag {int(bad[0])} is outside the {count} tags of the task" if count is not None
                else f"{name} tag {int(bad[0])} is no label index",
                why="Tags are indices into the label names, counted from 0.",
            )  # fmt: skip
    return sides[0], sides[1]


def _entities(sentences: Sequence[np.ndarray], label_names: Sequence[str]) -> set[tuple[int, int, int]]:
    """(first word, last word, type) of every entity; words are counted through all sentences, with one between two.

    An entity begins at a tag inside one that is B, or follows O or another type; it lasts to the next beginning or O.
    """
    unlike = [name for name in label_names if not _BIO_TAG.fullmatch(name)]
    if unlike:
        raise SettingsError(
            f"f1_entities on the tag '{unlike[0]}'",
            why="Entities are counted in tags O, B-TYPE and I-TYPE.",
            fix="metric=accuracy_tokens",
        )
    names = sorted({name[2:] for name in label_names if name != "O"})
    # type of each tag; -1, also of the gap between two sentences, is outside
    types = np.array([-1 if name == "O" else names.index(name[2:]) for name in (*label_names, "O")])
    opens = np.array([name.startswith("B") for name in (*label_names, "O")])
    gap = np.array([len(label_names)])
    tags = np.concatenate([gap, *(part for sentence in sentences for part in (sentence, gap))])
    kind, inside = types[tags], types[tags] >= 0
    begins = np.zeros(len(tags), dtype=bool)
    begins[1:] = inside[1:] & (opens[tags[1:]] | (kind[1:] != kind[:-1]))
    ends = np.zeros(len(tags), dtype=bool)
    ends[:-1] = inside[:-1] & (~inside[1:] | begins[1:])
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    return set(zip(first.tolist(), last.tolist(), kind[first].tolist(), strict=True))


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
