"""What a sample of text gives: labelled rows in three splits, and raw text that leaks none of the held-out ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Label = str | float


class Row(NamedTuple):
    """One labelled example. ``date`` is ISO 8601 (``2016-09-28``) or None; ``group`` is a film, a document, or "".

    ``label`` is a class, a number, a response, or the tags of the words of ``text``; words and tags are each joined by
    one space.
    """

    text: str
    text_pair: str | None
    label: Label
    group: str = ""
    date: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The one or two texts of the row."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


class RawText(NamedTuple):
    """One unlabelled text, label markup stripped."""

    text: str
    group: str = ""
    date: str | None = None


@dataclass
class Records:
    """What a loader reads out of a package, before anything is separated.

    ``official[i]`` is "train" or "test" where the data set has its own split of the rows; None where it has none.
    ``outside`` are texts that carry no label of the task but belong to the same domain.
    """

    rows: list[Row] = field(default_factory=list)
    outside: list[RawText] = field(default_factory=list)
    official: list[str] | None = None


@dataclass(frozen=True)
class SampleRows:
    """A sample, separated: no near-duplicate and no group of validation or test is in ``train`` or in ``raw``.

    Attributes:
        name: the sample's name.
        splits: "train", "validation", "test" -> labelled rows; {} where the sample is raw text alone.
        raw: unlabelled texts: those of the train split and those outside the task.
        facts: counts, clusters, ``overlap`` (0), ``label_names``, ``kind``, ``metric``, ``text_columns``,
            ``label_column``, ``content`` (SHA-256 of all rows), ``warnings``, ``notes``, licence and package.
    """

    name: str
    splits: dict[str, tuple[Row, ...]]
    raw: tuple[RawText, ...]
    facts: dict[str, Any]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class or tag names in alphabetical order, the tag O first; () for regression, generation and raw text."""
        return tuple(self.facts.get("label_names", ()))

    def labelled(self) -> Iterator[tuple[str, Row]]:
        """All labelled rows with the name of their split."""
        for split, rows in self.splits.items():
            for row in rows:
                yield split, row
