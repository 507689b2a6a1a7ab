"""The panel of a grid of transfers on the page: gains of every reading, pairs, heat-maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytune.evaluate.transfer_arms import READINGS, Line, grid_of, pairs, readings
from anytune.report import words
from anytune.report.transfer_charts import gain_maps
from anytune.report.transfer_tables import choices_of, over_targets, paid_steps, teachers_of


@dataclass(frozen=True)
class Grids:
    """The lines of one grid, and what the page calls it."""

    name: str
    lines: Sequence[Line]
    rankings: Sequence[Line]


def panel(found: Grids) -> dict[str, Any]:
    """What the template shows of a grid."""
    grid = grid_of(found.lines)
    shown = readings(grid, choices_of(found.rankings), teachers_of(found.lines))
    paid = paid_steps(grid, shown)
    rows = []
    for one in shown:
        against, mean = one.against, over_targets(grid, one)
        small = ""
        if against is not None:
            small = f"{words.signed(against.difference.mean)} {words.interval(against.difference)}".strip()
            small += f", {against.outcome}"
        rows.append({
            "arm": one.name, "control": one.name == grid.control, "targets": len(one.scores),
            "mean": words.NOTHING if mean is None else words.decimal(mean, 2), "small": small,
            "cost": words.decimal(paid[one.name], 1),
        })  # fmt: skip
    beside = [
        {"arm": one.arm, "pairs": one.n, "gain": words.signed(one.gain), "negative": f"{100 * one.negative:.0f} %",
         "worst": words.signed(one.worst), "source": f"{one.worst_source[0]} ({words.signed(one.worst_source[1])})"}
        for one in pairs(grid)
    ]  # fmt: skip
    return {
        "name": found.name, "control": grid.control, "rows": rows, "pairs": beside, "maps": gain_maps(grid),
        "meanings": [f"{name}: {meaning}" for name, meaning in READINGS.items()],
        "note": f"{len(grid.sources)} sources, {len(grid.targets)} targets",
        "families": len(grid.families),
        "failed": [f"{line['arm']} on {line['target']}, seed {line['seed']}: {line['failed']}"
                   for line in found.lines if line["failed"]],
    }  # fmt: skip
