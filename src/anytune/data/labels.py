"""Labels: words in a column to class indices or numbers, with an error for every label that is neither."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anytune.data.sources import checked_texts
from anytune.data.tables import Table, listed, shown
from anytune.errors import DataError, SettingsError, nearest

#: Numeric labels with a fraction and more distinct values than this are taken for a regression target.
MOST_NUMERIC_CLASSES = 20


@dataclass(frozen=True)
class Rows:
    """Rows as read.

    Attributes:
        table: where they came from, for errors.
        texts: one list of texts, or two for pairs.
        labels: the label of each row as a word, never empty.
    """

    table: Table
    texts: tuple[list[str], ...]
    labels: list[str]


def read_rows(table: Table, text_columns: Sequence[str], label_column: str) -> Rows:
    """Texts and labels of a table, checked.

    Raises:
        DataError: a row has no text or no label; the first such row is named.
    """
    texts = tuple(checked_texts(table, column) for column in text_columns)
    values = table.columns[label_column]
    words = [label_word(value) for value in values]
    missing = [row for row, word in enumerate(words) if not word]
    if missing:
        raise DataError(
            f"{table.place(missing[0])} has no label in column '{label_column}': {shown(values[missing[0]])}"
            + (f" ({len(missing)} such rows)" if len(missing) > 1 else ""),
            why="A model learns from rows whose label is known.",
            fix="remove these rows, or label them",
        )
    return Rows(table, texts, words)


def label_word(value: Any) -> str:
    """A label as a word: "" where there is none (null, NaN, the word nan); 3.0 is "3".

    A column of whole numbers with a gap somewhere becomes one of floats in many writers, so 3 and 3.0 are one class.
    """
    if value is None or isinstance(value, list | dict):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    word = str(value).strip()
    return "" if word.lower() == "nan" else word


def number(word: str) -> float | None:
    """The finite number a word stands for, else None."""
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def guess_kind(words: Sequence[str]) -> Literal["classification", "regression"]:
    """Regression for numbers with a fraction and more than 20 distinct values, else classification."""
    values = [number(word) for word in words]
    finite = [value for value in values if value is not None]
    fractions = any(not value.is_integer() for value in finite)
    if len(finite) == len(values) and fractions and len(set(finite)) > MOST_NUMERIC_CLASSES:
        return "regression"
    return "classification"


def label_names(train: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The class names in their order: the chosen ones, else those of the training labels.

    Training labels are sorted by value where all are numbers, else alphabetically.

    Raises:
        SettingsError: fewer than two names are chosen, or one twice.
    """
    if chosen is None:
        values = {word: number(word) for word in set(train)}
        if all(value is not None for value in values.values()):
            return tuple(sorted(values, key=lambda word: (values[word], word)))
        return tuple(sorted(values))
    names = tuple(part.strip() for part in chosen.split(",")) if isinstance(chosen, str) else tuple(map(str, chosen))
    if len(set(names)) != len(names) or len(names) < 2:
        raise SettingsError(f"label names {listed(names)}", why="At least two different names are needed.")
    return names


def indices(rows: Rows, names: Sequence[str]) -> list[int]:
    """The class index of each row.

    Raises:
        DataError: a label is none of ``names``; the row and the near name are given.
    """
    index = {name: place for place, name in enumerate(names)}
    bad = next((row for row, word in enumerate(rows.labels) if word not in index), None)
    if bad is not None:
        raise DataError(
            f"{rows.table.place(bad)} has the unknown label {shown(rows.labels[bad])}",
            why=f"The classes are those of the training rows, or the label names given: {listed(names)}.",
            fix=nearest(rows.labels[bad], names) or "correct the row, or add training rows of that class",
        )
    return [index[word] for word in rows.labels]


def numbers(rows: Rows) -> list[float]:
    """The number of each row.

    Raises:
        DataError: a label is no finite number; the row is named.
    """
    values = [number(word) for word in rows.labels]
    bad = next((row for row, value in enumerate(values) if value is None), None)
    if bad is not None:
        raise DataError(
            f"{rows.table.place(bad)} has the label {shown(rows.labels[bad])}, which is no finite number",
            why="Regression needs a number in every row.",
            fix="--kind classification, or correct the row",
        )
    return [value for value in values if value is not None]


def refuse_constant(train: Rows, kind: str) -> None:
    """Refuse training rows that all carry one label.

    Raises:
        DataError: they do; the label is named.
    """
    if len(set(train.labels)) < 2:
        what = "one value" if kind == "regression" else "one class"
        raise DataError(
            f"all {len(train.labels)} training rows of {train.table.source} have {what}: {shown(train.labels[0])}",
            why="There is nothing to tell apart.",
            fix="--label COLUMN, if another column holds the labels",
        )
