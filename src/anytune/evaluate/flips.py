"""Flips: answers that were right before an upgrade and are wrong after it, example by example.

A model that scores higher may still break answers that users relied on. A *negative flip* is an example the old model
answered rightly and the new one does not; a *positive flip* the reverse (Yan et al. 2021, "Positive-congruent
training"). Pure functions on answers; nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.errors import DataError


@dataclass(frozen=True)
class Flips:
    """Counts over the same ``examples`` (words, for tags)."""

    examples: int
    old_right: int
    new_right: int
    negative: int
    positive: int
    #: answers that differ, right or wrong
    changed: int

    @property
    def negative_rate(self) -> float:
        """Negative flips as a share of all examples, 0 to 1."""
        return self.negative / self.examples

    @property
    def broken(self) -> float | None:
        """Negative flips as a share of what the old model answered rightly; None where it answered nothing rightly."""
        return self.negative / self.old_right if self.old_right else None

    @property
    def disagreement(self) -> float:
        """Share of the examples with another answer; needs no labels."""
        return self.changed / self.examples

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "negative_rate": self.negative_rate, "disagreement": self.disagreement}


def flips(old: Sequence[Any], new: Sequence[Any], gold: Sequence[Any], *, tolerance: float | None = None) -> Flips:
    """Compare two models' answers to the same examples.

    Args:
        old, new: answers in the same order: class numbers or names, texts, or real values.
        gold: the right ones.
        tolerance: of real values: an answer this near to the right one counts as right, and two answers this near to
            each other as the same. None: only equal ones are.

    Raises:
        DataError: no examples, or sequences of different lengths.
    """
    if not len(old) == len(new) == len(gold) or not len(gold):
        raise DataError(
            f"{len(old)} old answers, {len(new)} new ones and {len(gold)} labels",
            why="Flips are counted over the same examples, one by one.",
        )
    same = _equal if tolerance is None else _near(tolerance)
    before = [same(answer, right) for answer, right in zip(old, gold, strict=True)]
    after = [same(answer, right) for answer, right in zip(new, gold, strict=True)]
    return Flips(
        examples=len(before),
        old_right=sum(before),
        new_right=sum(after),
        negative=sum(was and not now for was, now in zip(before, after, strict=True)),
        positive=sum(now and not was for was, now in zip(before, after, strict=True)),
        changed=sum(not same(left, right) for left, right in zip(old, new, strict=True)),
    )


def disagreement(old: Sequence[Any], new: Sequence[Any], *, tolerance: float | None = None) -> float:
    """Share of examples that two models answer differently, 0 to 1; no labels needed."""
    return flips(old, new, old, tolerance=tolerance).disagreement


def flips_of_lines(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], *, tolerance: float | None = None
) -> Flips:
    """Flips from two runs' lines of ``predictions.jsonl`` over the same split.

    Tags are counted word by word.

    Raises:
        DataError: the lines are of different examples, or answers were not decoded.
    """
    for line in (*old, *new):
        if "predicted" not in line:
            raise DataError("a line of predictions holds no answer", why="The responses of that run were not decoded.")
    if [line["gold"] for line in old] != [line["gold"] for line in new]:
        raise DataError(
            "the two runs' predictions are of different examples",
            why="Flips are counted example by example.",
            fix="runs scored on the same test split",
        )
    return flips(
        _flat(line["predicted"] for line in old), _flat(line["predicted"] for line in new),
        _flat(line["gold"] for line in old), tolerance=tolerance,
    )  # fmt: skip


def _flat(answers: Any) -> list[Any]:
    found: list[Any] = []
    for answer in answers:
        found.extend(answer if isinstance(answer, list) else [answer])
    return found


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right)


def _near(tolerance: float) -> Any:
    return lambda left, right: abs(float(left) - float(right)) <= tolerance
