"""Responses: what a model is to write after a prompt, as text, with an error for every row that has none."""

from __future__ import annotations

import math
from typing import Any

from anytune.data.sources import is_writable
from anytune.data.tables import Table, shown
from anytune.errors import DataError


def read_responses(table: Table, column: str) -> list[str]:
    """The responses of a column as they stand; numbers become the text that stands for them, 3.0 becomes "3".

    An empty response is refused: a model that learns to say nothing is mostly the mark of a gap in the data.

    Raises:
        DataError: a row has no response, or something that is no text and no number; the first such row is named.
    """
    values = table.columns[column]
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"{table.place(missing[0])} has no response in column '{column}': {shown(values[missing[0]])}"
            + (f" ({len(missing)} such rows)" if len(missing) > 1 else ""),
            why="A model learns from what it is to write; nothing at all is mostly a gap in the data.",
            fix='remove these rows, or write out what stands for nothing, such as "none"',
        )
    return [_text(table, row, value, column) for row, value in enumerate(values)]


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def _text(table: Table, row: int, value: Any, column: str) -> str:
    if isinstance(value, list | dict | bool):
        raise DataError(
            f"{table.place(row)} has {shown(value)} in column '{column}', which is no text",
            why="A row has one prompt and one response.",
            fix="one row for each response" if isinstance(value, list) else "--label COLUMN   (one that holds text)",
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    if not is_writable(text):
        raise DataError(
            f"{table.place(row)} holds half a character (a lone surrogate) in column '{column}': {shown(value)}",
            why="Such text cannot be encoded, and no tokenizer takes it.",
            fix="correct the row",
        )
    return text


def refuse_one_response(table: Table, responses: list[str]) -> None:
    """Refuse training rows that all have one response.

    Raises:
        DataError: they do; the response is named.
    """
    if len(set(responses)) < 2:
        raise DataError(
            f"all {len(responses)} training rows of {table.source} have one response: {shown(responses[0])}",
            why="There is nothing to tell apart.",
            fix="--label COLUMN, if another column holds the responses",
        )
