"""Pictures of an upgrade: the path between two models, how alike heads are, how far each part of a base moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from anytune.report.svg import marker, path, tag, ticks
from anytune.report.transfer_charts import CELL, heat_map

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 16, 42
#: of the bars of parts of a base
BAR, LETTER = 20, 6.4


def path_chart(points: Sequence[Mapping[str, Any]], value: str, label: str, *, ends: tuple[str, str]) -> Markup | None:
    """A curve over the places of a path, with a mark at each end and the straight line between the ends.

    Args:
        points: of a path's record: ``x``, ``loss`` and ``scores``.
        value: "loss", or the name of a score.
        label: what it shows.
        ends: what stands at x = 0 and at x = 1.

    Returns:
        None where fewer than two points have the value.
    """
    found = [(float(point["x"]), point["loss"] if value == "loss" else point["scores"].get(value)) for point in points]
    there = [(x, float(y)) for x, y in found if y is not None and math.isfinite(y)]
    if len(there) < 2:
        return None
    low, high = min(y for _, y in there), max(y for _, y in there)
    air = (high - low) * 0.08 or max(abs(high) * 0.05, 0.01)
    low, high = low - air, high + air

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * (WIDTH - LEFT - RIGHT), TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high, 5):
        y = at(0, tick)[1]
        parts.append(tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", f"{tick:g}".replace("-", "−"), x=LEFT - 7, y=y + 4, text_anchor="end"))
    floor = HEIGHT - BOTTOM
    parts.append(tag("path", d=f"M{LEFT} {floor}H{WIDTH - RIGHT}", class_="axis"))
    for x, name, anchor in ((0.0, ends[0], "start"), (1.0, ends[1], "end")):
        parts.append(tag("text", name, x=at(x, low)[0], y=floor + 18, text_anchor=anchor))
    straight = [at(*there[0]), at(*there[-1])]
    parts.append(tag("path", d=path(straight), class_="line thin arm-1", stroke_dasharray="2 4"))
    parts.append(tag("path", d=path([at(x, y) for x, y in there]), class_="line arm-0"))
    for x, y in (there[0], there[-1]):
        parts.append(marker("circle", *at(x, y), class_="mark arm-0"))
    said = f"{label}: {there[0][1]:.3g} at {ends[0]}, {there[-1][1]:.3g} at {ends[1]}"
    return tag("svg", tag("title", said), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said,
               class_="curves")  # fmt: skip


def map_width(similarity: Mapping[str, Any]) -> int:
    """Pixels that the heat-maps of heads may take: few heads must not fill a page."""
    return 120 + int(1.5 * CELL * len(similarity["js"][0]))


def head_maps(similarity: Mapping[str, Any]) -> list[tuple[str, str, Markup]]:
    """(title, what the null says, heat-map) of Jensen-Shannon and cosine: above the mean null in one colour."""
    found = []
    for name, title in (("js", "1 − Jensen-Shannon"), ("cosine", "Cosine")):
        values = np.array(
            [[math.nan if cell is None else cell for cell in row] for row in similarity[name]], dtype=np.float64
        )
        null = similarity[f"mean_null_{name}"]
        mean = similarity[f"mean_{name}"]
        rows = [f"layer {layer}" for layer in range(len(values))]
        columns = [f"head {head}" for head in range(values.shape[1])]
        beside = "one head: no null" if null is None else f"mean {mean:.3f}, shuffled heads {null:.3f}"
        picture = heat_map(rows, columns, values, f"{title} of attention, {beside}", middle=null or 0.0)
        found.append((title, beside, picture))
    return found


def distance_bars(modules: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """A bar for each part of a base: how far it moved relative to its own length. None without parts."""
    names = list(modules)
    values = [float(modules[name]["relative"]) for name in names]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    left = 14 + LETTER * max(len(name) for name in names)
    width, height = 640, BAR * len(names) + 8
    room = width - left - 70
    largest = max(finite) or 1.0
    parts = []
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 4 + place * BAR
        long = room * min(1.0, value / largest) if math.isfinite(value) else room
        parts.append(tag("text", name, x=left - 8, y=y + 14, text_anchor="end", class_="head"))
        parts.append(tag("rect", x=left, y=y + 3.0, width=max(1.0, long), height=BAR - 6, rx=2, class_="up"))
        parts.append(tag("text", f"{value:.2%}".replace("inf%", "∞"), x=left + max(1.0, long) + 6, y=y + 14))
    label = f"How far each of {len(names)} parts moved, relative to its length"
    return tag("svg", tag("title", label), *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label,
               class_="heat")  # fmt: skip
