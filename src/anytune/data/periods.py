"""Dated text, cut into periods by its time stamps: a stream over years or months from one file.

Dates are ISO 8601 (``2016-09-28``, ``2016-09-28T10:15:00Z``, ``2016-09``, ``2016``), so that they sort as text. Pure
functions, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from anytune.errors import DataError, SettingsError, nearest

_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:[T ].*)?)?)?")
WIDTHS = {"year": 4, "month": 7}
#: "year", "month", or the first dates of all periods but the first
SplitBy = str | Sequence[Any]


def periods(dates: Sequence[str], split_by: SplitBy, source: str = "the source") -> dict[str, list[int]]:
    """Period -> its rows, in the order of time.

    Args:
        dates: ISO 8601.
        split_by: "year" (periods "2016", "2017"), "month" ("2016-09"), or a list of borders, each the first date of a
            period: ``["2016-04", "2016-07"]`` gives "before-2016-04", "from-2016-04" and "from-2016-07".
        source: what errors call it.

    Raises:
        DataError: a date that is none, or too coarse (a year where months are asked for); a period without a row.
        SettingsError: ``split_by`` is none of these.
    """
    borders = _borders(split_by)
    for row, date in enumerate(dates):
        _check(date, row, source, split_by)
    found: dict[str, list[int]] = {}
    if borders is None:
        width = WIDTHS[str(split_by)]
        for row, date in sorted(enumerate(dates), key=lambda item: item[1][:width]):
            found.setdefault(date[:width], []).append(row)
        return found
    names = [f"before-{borders[0]}", *(f"from-{border}" for border in borders)]
    found = {name: [] for name in names}
    for row, date in enumerate(dates):
        found[names[sum(date >= border for border in borders)]].append(row)
    empty = next((name for name, rows in found.items() if not rows), None)
    if empty is not None:
        raise DataError(
            f"{source} has no text in the period '{empty}'",
            why=f"Its dates run from {min(dates)} to {max(dates)}." if dates else "It has no text.",
            fix="other borders",
        )
    return found


def _borders(split_by: SplitBy) -> list[str] | None:
    """The borders as text; None for years and months."""
    if isinstance(split_by, str):
        if split_by not in WIDTHS:
            raise SettingsError(
                f"split_by = {split_by!r}", why="year, month, or a list of dates at which a period begins.",
                fix=f"split_by: {nearest(split_by, WIDTHS) or 'year'}",
            )  # fmt: skip
        return None
    borders = [str(border) for border in split_by] if isinstance(split_by, Sequence) else []
    if not borders or any(_date(border) is None for border in borders) or borders != sorted(set(borders)):
        raise SettingsError(
            f"split_by = {split_by!r}", why="Borders are ISO dates, each later than the one before.",
            fix="split_by: [2016-04, 2016-07]",
        )  # fmt: skip
    return borders


def _date(text: str) -> re.Match[str] | None:
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    month, day = found[2] or "01", found[3] or "01"
    return found if "01" <= month <= "12" and "01" <= day <= "31" else None


def _check(date: str, row: int, source: str, split_by: SplitBy) -> None:
    found = _date(date)
    if found is None:
        raise DataError(
            f"row {row + 1} of {source} has the date {date!r}",
            why="Text is split by time where its dates are ISO 8601, which sort as they stand.",
            fix="2016-09-28",
        )
    if split_by == "month" and found[2] is None:
        raise DataError(f"row {row + 1} of {source} has the date {date!r}", why="It names no month.", fix="2016-09")
