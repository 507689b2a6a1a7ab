"""What the page's panels hold, as plain values: the overview of gains, the table of runs, the held-out losses.

Places are in percent of a panel's width, so that the drawings keep their text size on any screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from anytune.evaluate import HeldOut, Row, Run, Summary
from anytune.evaluate.compare import unit
from anytune.evaluate.scores import Difference, higher_is_better
from anytune.report import words
from anytune.report.arms import Look, swatch
from anytune.report.svg import ticks


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` as percent of a width."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Percent from the left, two decimals."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, about: int = 6) -> list[dict[str, object]]:
        """Labelled round numbers with their place."""
        return [{"at": self.place(value), "value": value} for value in ticks(self.low, self.high, about)]


def scale_over(values: Sequence[float], include: float | None = None) -> Scale:
    """A scale that holds all values with 5 % of air at each end."""
    inside = [*values, *([] if include is None else [include])]
    low, high = min(inside), max(inside)
    air = (high - low) * 0.05 or 1.0
    return Scale(low - air, high + air)


def overview(rows: Sequence[Row], looks: Mapping[str, Look]) -> dict[str, object] | None:
    """Gain of each arm over fresh tuning, one strip for each task and base; None if nothing has a control."""
    compared = [(row, row.over_fresh) for row in rows if row.over_fresh and higher_is_better(row.metric)]
    if not compared:
        return None
    ends = [end for _, gain in compared for end in (gain.low, gain.high, gain.mean) if end is not None]
    scale = scale_over(ends, include=0.0)
    cells: dict[tuple[tuple[str, str], str], dict[str, object]] = {}
    for row, gain in compared:
        cell = cells.setdefault((row.task_key, row.base_key), {"task": row.task, "base": row.base, "marks": []})
        cell["marks"].append(_mark(row, gain, looks[row.arm], scale))  # type: ignore[attr-defined]
    arms = sorted({row.arm for row, _ in compared}, key=list(looks).index)
    return {
        "cells": list(cells.values()),
        "ticks": [
            tick | {"text": words.signed(float(str(tick["value"])), 0 if scale.high - scale.low > 6 else 1)}
            for tick in scale.ticks()
        ],
        "zero": scale.place(0.0),
        "arms": [{"name": arm, "swatch": swatch(looks[arm], line=False)} for arm in arms],
    }  # fmt: skip


def _mark(row: Row, gain: Difference, look: Look, scale: Scale) -> dict[str, object]:
    low, high = (gain.mean if end is None else end for end in (gain.low, gain.high))
    text = f"{row.label}: {words.signed(gain.mean)} against fresh tuning"
    if gain.low is not None:
        text += f", interval {words.interval(gain)}, {gain.outcome}"
    return {
        "slot": look.slot,
        "at": scale.place(gain.mean),
        "low": scale.place(low),
        "width": round(scale.place(high) - scale.place(low), 2),
        "swatch": swatch(look, line=False),
        "text": text,
        "value": words.signed(gain.mean),
        "undecided": gain.outcome == "undecided",
    }


def table(rows: Sequence[Row], looks: Mapping[str, Look]) -> list[dict[str, object]]:
    """The table of all runs: one entry per row of the comparison, with its single seeds below it."""
    return [_entry(row, looks[row.arm], index) for index, row in enumerate(rows)]


def _entry(row: Row, look: Look, index: int) -> dict[str, object]:
    def cell(text: str, value: float | None, small: str = "") -> dict[str, object]:
        return {"text": text, "value": "" if value is None else f"{value:.6g}", "small": small}

    def gain(difference: Difference | None) -> dict[str, object]:
        if difference is None:
            return cell(words.NOTHING, None)
        # parts that belong together stay on one line, whatever the width of the column
        parts = [words.interval(difference).replace(" ", "\N{NO-BREAK SPACE}")]
        parts += ["undecided"] if difference.outcome == "undecided" else []
        return cell(words.signed(difference.mean), difference.mean, " ".join(filter(None, parts)))

    never = row.target is not None and row.steps_to_target is None
    # a lower bound below zero says nothing at all
    told = row.saved is not None and not (row.saved_at_least and row.saved < 0)
    saved = ("≥ " if row.saved_at_least else "") + words.share(row.saved) if told else words.NOTHING
    steps = cell(
        "not reached" if never else words.count(row.steps_to_target),
        math.inf if never else row.steps_to_target,
        "" if row.target is None else f"{row.reached} of {len(row.runs)} · {words.duration(row.seconds_to_target)}"
        if row.seconds_to_target is not None else f"{row.reached} of {len(row.runs)}",
    )  # fmt: skip
    split = f"{words.count(row.old_steps)} of them old" if row.old_steps else ""
    return {
        "id": f"seeds-{index}",
        "task": row.task,
        "base": row.base,
        "arm": row.arm,
        "label": row.label,
        "swatch": swatch(look),
        "method": row.method,
        "metric": row.metric,
        "test": cell(words.mean_sd(row.test), _mean(row.test), f"{len(row.runs)} seed{'s' * (len(row.runs) != 1)}"),
        "over_fresh": gain(row.over_fresh),
        "over_direct": gain(row.over_direct),
        "over_outdated": gain(row.over_outdated),
        "reach": steps,
        "saved": cell(saved, row.saved if told else None),
        "cost": cell(words.count(row.total_steps), row.total_steps, split),
        "seconds": cell(words.duration(row.seconds), row.seconds),
        "runs": [_seed(run) for run in row.runs],
        "text": " ".join((row.task, row.base, row.label, row.method, row.metric)).lower(),
    }


def _mean(summary: Summary | None) -> float | None:
    return summary.mean if summary else None


def _seed(run: Run) -> dict[str, object]:
    times = unit(run.metric)
    kept = {"full": "full delta", "peft": "PEFT adapter", "scores": "scores only"}
    return {
        "seed": run.seed,
        "name": run.manifest.name,
        "reference": run.folder.name,
        "id": run.manifest.id[:12],
        "test": words.decimal(None if run.test is None else run.test * times, 2),
        "validation": words.decimal(None if run.validation is None else run.validation * times, 2),
        "steps": words.count(run.steps),
        "seconds": words.duration(run.seconds),
        "kept": kept.get(run.manifest.form or "", words.NOTHING),
        "recipe": recipe_text(run.manifest.recipe),
    }


def recipe_text(recipe: Mapping[str, object]) -> str:
    """The recipe as the YAML that ``anytune run`` reads; empty if none was recorded."""
    if not recipe:
        return ""
    # manifests are stored with sorted keys; a reader wants to know first which job it is
    ordered = {key: recipe[key] for key in ("job", *recipe) if key in recipe}
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100).rstrip()


def losses(found: Sequence[HeldOut]) -> dict[str, object] | None:
    """Held-out loss before and after for each base and domain, with places for a dumbbell; None if there is none."""
    values = [value for one in found for value in (one.before, one.after) if value is not None]
    if not values:
        return None
    scale = scale_over(values)
    bases: dict[str, dict[str, object]] = {}
    for one in found:
        base = bases.setdefault(one.base_id or one.base, {"name": one.base, "rows": []})
        base["rows"].append(_loss(one, scale))  # type: ignore[attr-defined]
    return {"bases": list(bases.values()), "ticks": [tick | {"text": f"{tick['value']:g}"} for tick in scale.ticks(5)]}


def _loss(one: HeldOut, scale: Scale) -> dict[str, object]:
    ends = [scale.place(value) for value in (one.before, one.after) if value is not None]
    change = one.change
    meaning = "" if change is None else "lower" if change < 0 else "higher" if change > 0 else "equal"
    return {
        "domain": one.domain,
        "trained": one.trained,
        "before": words.decimal(one.before, 2),
        "after": words.decimal(one.after, 2),
        "perplexity": words.decimal(math.exp(min(one.after, 700)), 1) if one.after is not None else words.NOTHING,
        "change": words.signed(change, 2),
        "meaning": meaning,
        "from": None if one.before is None else scale.place(one.before),
        "to": None if one.after is None else scale.place(one.after),
        "low": min(ends, default=0.0),
        "width": round(max(ends, default=0.0) - min(ends, default=0.0), 2),
    }
