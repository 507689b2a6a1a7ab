"""The comparison for a terminal and for scripts: plain records, and a rich table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anytune.evaluate import Difference, Row, Summary
from anytune.report import words

if TYPE_CHECKING:
    from rich.table import Table


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON-able dicts with plain numbers (points; None where there is none), for ``--json``."""
    return [
        {
            "task": row.task,
            "base": row.base,
            "arm": row.arm,
            "variant": row.variant,
            "method": row.method,
            "metric": row.metric,
            "seeds": [run.seed for run in row.runs],
            "test": _summary(row.test),
            "validation": _summary(row.validation),
            "over_fresh": _difference(row.over_fresh),
            "over_fresh_whole_budget": _difference(row.over_whole),
            "over_direct": _difference(row.over_direct),
            "over_not_upgrading": _difference(row.over_outdated),
            "target": row.target,
            "seeds_reached": row.reached,
            "steps_to_target": row.steps_to_target,
            "seconds_to_target": row.seconds_to_target,
            "steps_saved_share": row.saved,
            "steps_saved_is_lower_bound": row.saved is not None and row.saved_at_least,
            "area": row.area,
            "steps": row.steps,
            "old_steps": row.old_steps,
            "seconds": row.seconds,
        }
        for row in rows
    ]


def _summary(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else dict(vars(summary))


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else dict(vars(difference))


COLUMNS = ("task", "base", "arm", "test", "vs fresh", "vs direct", "to target", "saved", "steps")


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One tuple of text for each row, in the order of ``COLUMNS``."""
    return [
        (
            row.task,
            row.base,
            row.label,
            words.mean_sd(row.test),
            _gain(row.over_fresh),
            _gain(row.over_direct),
            _target(row),
            words.NOTHING if row.saved is None else words.share(row.saved),
            words.count(row.steps) + (f" (+{words.count(row.old_steps)} old)" if row.old_steps else ""),
        )
        for row in rows
    ]


def _gain(difference: Difference | None) -> str:
    if difference is None:
        return words.NOTHING
    return words.signed(difference.mean) + (" ?" if difference.outcome == "undecided" else "")


def _target(row: Row) -> str:
    if row.target is None:
        return words.NOTHING
    seeds = f"{row.reached}/{len(row.runs)}"
    return f"never ({seeds})" if row.steps_to_target is None else f"{words.count(row.steps_to_target)} ({seeds})"


def comparison_table(rows: Sequence[Row]) -> Table:
    """The comparison as a rich table; a question mark stands for "undecided". Print it with a rich Console."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        caption="points, mean ± sd over seeds; ? = undecided; to target = median step (seeds that got there)"
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:3] else "right", no_wrap=name not in COLUMNS[:3])
    before = None
    for row, line in zip(rows, lines(rows), strict=True):
        cell = (row.task_key, row.base_key)
        if before not in (None, cell):
            table.add_section()
        before = cell
        # names come from manifests: as Text they cannot be read as markup
        table.add_row(*(Text(part) for part in line))
    return table
