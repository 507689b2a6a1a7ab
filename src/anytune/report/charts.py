"""Learning curves as SVG, drawn here in Python: they are on the page without any JavaScript."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from anytune.evaluate import Band, Row, align
from anytune.evaluate.compare import unit
from anytune.evaluate.curves import Axis
from anytune.evaluate.runs import INITIALIZE
from anytune.report.arms import Look, swatch
from anytune.report.svg import marker, path, tag, ticks
from anytune.report.words import decimal

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 14, 40
#: from (x, y) in data to (x, y) in the drawing
Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One arm in a chart: a band along the axis, or (without a band) one ``level`` at step 0."""

    label: str
    arm: str
    look: Look
    seeds: int
    band: Band | None = None
    level: float | None = None
    #: lowest and highest seed of ``level``
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A task on a base: what the template shows. ``legend`` holds (swatch, label, value, range) of each series."""

    title: str
    axis_label: str
    steps: Markup
    seconds: Markup
    legend: list[dict[str, object]]
    data: str
    caption: str


def series_of(rows: Sequence[Row], looks: dict[str, Look], axis: Axis) -> list[Series]:
    """The series of one chart, in reader's units (points)."""
    found = []
    for row in rows:
        scale = unit(row.metric)
        band = align([run.curve for run in row.runs if run.curve and run.steps], axis)
        look = looks[row.arm]
        if band:
            scaled = Band(band.x, band.mean * scale, band.low * scale, band.high * scale, band.n)
            found.append(Series(row.label, row.arm, look, band.n, band=scaled))
        elif row.validation and row.steps == 0:
            seeds = row.validation
            found.append(Series(row.label, row.arm, look, seeds.n, None, seeds.mean, (seeds.minimum, seeds.maximum)))
    return found


def chart(title: str, rows: Sequence[Row], looks: dict[str, Look]) -> Chart | None:
    """The chart of one task on one base; None if no run of it has a curve."""
    axes: tuple[Axis, ...] = ("steps", "seconds")
    drawn = {axis: series_of(rows, looks, axis) for axis in axes}
    if not any(series.band for series in drawn["steps"]):
        return None
    target = next((row.target for row in rows if row.target is not None), None)
    hit = next((row for row in rows if row.arm == INITIALIZE and row.steps_to_target is not None), None)
    metric = rows[0].metric.replace("_", " ")
    pictures, geometry = {}, {}
    for axis, series in drawn.items():
        arrival = None if hit is None else hit.steps_to_target if axis == "steps" else hit.seconds_to_target
        pictures[axis], geometry[axis] = _picture(title, metric, series, target, arrival, axis)
    return Chart(
        title=title,
        axis_label=f"validation {metric}",
        steps=pictures["steps"],
        seconds=pictures["seconds"],
        legend=[_legend(series) for series in drawn["steps"]],
        data=json.dumps(geometry),
        caption=_caption(rows),
    )


def _caption(rows: Sequence[Row]) -> str:
    row = next((row for row in rows if row.arm == INITIALIZE), None)
    if row is None or row.target is None:
        return ""
    if row.steps_to_target is None:
        return f"initialize did not reach fresh tuning's final score ({row.reached} of {len(row.runs)} seeds did)"
    return f"initialize reached fresh tuning's final score after {row.steps_to_target:,.0f} of {row.steps:,.0f} steps"


def _legend(series: Series) -> dict[str, object]:
    value = float(series.band.mean[-1]) if series.band else series.level
    spread = (float(series.band.low[-1]), float(series.band.high[-1])) if series.band else series.ends
    spread = spread if series.seeds > 1 else None
    return {
        "swatch": swatch(series.look),
        "label": series.label,
        "value": decimal(value),
        "range": f"{decimal(spread[0])} to {decimal(spread[1])}" if spread else "",
    }


def _limits(series: Sequence[Series], target: float | None) -> tuple[float, float, float]:
    """End of x, low and high of y with a little air."""
    bands = [one.band for one in series if one.band]
    heights = [value for band in bands for value in (band.low.min(), band.high.max())]
    heights += [one.level for one in series if one.level is not None] + ([target] if target is not None else [])
    low, high = float(min(heights)), float(max(heights))
    air = (high - low) * 0.06 or max(abs(high) * 0.05, 0.5)
    return float(max(band.x[-1] for band in bands)) or 1.0, low - air, high + air


def _picture(
    title: str, metric: str, series: Sequence[Series], target: float | None, arrival: float | None, axis: Axis
) -> tuple[Markup, dict[str, object]]:
    end, low, high = _limits(series, target)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + x / end * (WIDTH - LEFT - RIGHT),
            TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = _axes(at, end, low, high, axis)
    if target is not None:
        y = at(0, target)[1]
        parts.append(tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="target"))
    for one in sorted(series, key=lambda one: one.arm == INITIALIZE):
        parts += _drawn(one, at)
    if target is not None and arrival is not None:
        parts += _arrival(at(arrival, target), arrival, axis)
    parts.append(tag("path", d=f"M0 {TOP}V{HEIGHT - BOTTOM}", class_="cursor"))
    names = ", ".join(one.label for one in series)
    label = f"{title}: validation {metric} against {axis} for {names}. The values are in the table of all runs."
    picture = tag(
        "svg", tag("title", label), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label,
        tabindex="0", data_axis=axis, class_=f"curves by-{axis}",
    )  # fmt: skip
    return picture, {
        "scale": [LEFT, WIDTH - RIGHT, end],
        "series": [_numbers(one) for one in series],
    }


def _numbers(series: Series) -> list[list[float]]:
    """[x, mean, low, high] of each point, rounded, for the read-out."""
    if series.band is None:
        return [[0.0, round(series.level or 0.0, 2)]]
    columns = (series.band.x, series.band.mean, series.band.low, series.band.high)
    return [[round(float(value), 2) for value in point] for point in np.stack(columns, axis=1)]


def _axes(at: Place, end: float, low: float, high: float, axis: Axis) -> list[Markup]:
    parts = []
    for value in ticks(low, high, 5):
        y = at(0, value)[1]
        parts.append(tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", f"{value:g}".replace("-", "−"), x=LEFT - 7, y=y + 4, text_anchor="end"))
    floor = HEIGHT - BOTTOM
    parts.append(tag("path", d=f"M{LEFT} {floor}H{WIDTH - RIGHT}", class_="axis"))
    for value in ticks(0, end, 5):
        x = at(value, low)[0]
        parts.append(tag("path", d=f"M{x:.1f} {floor}v4", class_="axis"))
        parts.append(tag("text", f"{value:,g}", x=x, y=floor + 17, text_anchor="middle"))
    name = "training steps" if axis == "steps" else "training seconds"
    parts.append(tag("text", name, x=WIDTH - RIGHT, y=HEIGHT - 6, text_anchor="end", class_="name"))
    return parts


def _drawn(series: Series, at: Place) -> list[Markup]:
    slot = f"arm-{series.look.slot}"
    if series.band is None:
        x, y = at(0, series.level or 0.0)
        line = tag("path", d=f"M{x:.1f} {y:.1f}H{WIDTH - RIGHT}", class_=f"line thin {slot}", stroke_dasharray="1.5 4")
        return [line, marker(series.look.shape, x, y, class_=f"mark {slot}")]
    band = series.band
    line_points = [at(x, y) for x, y in zip(band.x, band.mean, strict=True)]
    parts = []
    if series.seeds > 1 and len(band.x) > 1:
        upper = [at(x, y) for x, y in zip(band.x, band.high, strict=True)]
        lower = [at(x, y) for x, y in zip(band.x, band.low, strict=True)]
        parts.append(tag("path", d=path(upper + lower[::-1], close=True), class_=f"band {slot}"))
    parts.append(tag("path", d=path(line_points), class_=f"line {slot}", stroke_dasharray=series.look.dash or None))
    every = max(1, (len(line_points) - 1) // 4)
    for x, y in line_points[::-every]:
        parts.append(marker(series.look.shape, x, y, class_=f"mark {slot}"))
    return parts


def _arrival(point: tuple[float, float], value: float, axis: Axis) -> list[Markup]:
    """Where initialize reached fresh tuning's final score: a drop line to the axis with its number."""
    x, y = point
    floor = HEIGHT - BOTTOM
    unit_name = "steps" if axis == "steps" else "s"
    left = x > WIDTH - 90
    text = tag(
        "text", f"{value:,.0f} {unit_name}" if axis == "steps" or value >= 10 else f"{value:.1f} s",
        x=x + (-6 if left else 6), y=floor - 7, text_anchor="end" if left else "start", class_="arrival",
    )  # fmt: skip
    return [tag("path", d=f"M{x:.1f} {y:.1f}V{floor}", class_="drop"), text]
