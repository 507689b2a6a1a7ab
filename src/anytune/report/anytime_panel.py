"""The panel of anytime matrices on the page: a table of metrics, the frontier, curves over stages, heat-maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytune.evaluate.anytime import METRICS, Line, cost
from anytune.report import words
from anytune.report.anytime_charts import KINDS, frontier, heat_map, stage_curves
from anytune.report.anytime_tables import arm_order, failures, lines_domains, metric_columns, plural
from anytune.report.anytime_views import views
from anytune.report.arms import swatch

#: heat-maps shown at once
HEATS_SHOWN = 6


@dataclass(frozen=True)
class Matrices:
    """The lines of one comparison, and what the page calls it."""

    name: str
    lines: Sequence[Line]
    stages: Sequence[Line]


def panel(found: Matrices) -> dict[str, Any]:
    """What the template shows of a comparison."""
    lines, stages = found.lines, found.stages
    arms, control, seen = arm_order(lines), lines[0]["control"], views(lines, stages)
    tables, spent = metric_columns(lines), cost(stages, control)
    runs = {(line["order"], line["seed"]) for line in lines if line["arm"] is not None}
    rows = []
    for arm in arms:
        cells = []
        for column in tables:
            against = column.against.get(arm)
            small = ""
            if against is not None:
                small = f"{words.signed(against.difference.mean)} {words.interval(against.difference)}".strip()
                small += f", {against.outcome}"
            cells.append({"text": words.mean_sd(column.summary(arm)), "small": small})
        rows.append({
            "arm": arm, "swatch": swatch(seen.looks[arm]), "cells": cells,
            "cost": words.decimal(spent.get(arm), 2) if arm in spent else words.NOTHING,
        })  # fmt: skip
    largest = max((heat.largest for heat in seen.heats), default=0.0)
    heats = [
        {"title": f"{heat.arm}, order {heat.order}", "seeds": plural(heat.seeds, "seed"),
         "picture": heat_map(heat, largest)} for heat in seen.heats
    ]  # fmt: skip
    pictures = [
        ("A against O", frontier(seen.points, seen)),
        ("The same in held-out loss, 0.01 nats",
         frontier(seen.loss_points, seen, "A: fall of a stage's own loss", "O: fall of losses not seen yet")),
    ]  # fmt: skip
    pictures += [(f"Gain on {meaning}", stage_curves(seen.paths, kind, seen)) for kind, meaning in KINDS.items()]
    return {
        "name": found.name, "control": control,
        "note": f"{plural(len(lines_domains(lines)), 'domain')}, {plural(len(runs), 'stream')} of an order and a seed",
        "metrics": [{"title": METRICS[column.metric].title, "meaning": METRICS[column.metric].meaning}
                    for column in tables],
        "rows": rows, "pictures": [(title, picture) for title, picture in pictures if picture is not None],
        "heats": heats[:HEATS_SHOWN], "more": heats[HEATS_SHOWN:], "failed": failures([*stages, *lines]),
    }  # fmt: skip
