"""The shelf of an upgrade as one picture: for each delta its score before, as it landed, and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from anytune.report.svg import marker, tag, ticks

#: a line of :meth:`anytune.jobs.upgrade.Outcome.record`
Line = Mapping[str, Any]
ROW, LEFT, RIGHT, TOP, WIDTH = 22, 250, 40, 26, 760
#: rows of one picture; the rest stand in the table
SHOWN = 120
#: what a score is drawn as: (its key in a line, marker, slot of the palette, what it is)
MARKS = (
    ("old", "circle", 1, "on the old base"),
    ("direct", "triangle", 2, "as it landed, without training"),
    ("score", "square", 4, "after the upgrade"),
)


def shelf_chart(lines: Sequence[Line], title: str) -> Markup:
    """Dumbbells, one row a delta, of lines with one metric.

    Args:
        lines: with a score on the old base.
        title: for readers who hear the picture.
    """
    shown = [line for line in lines if line["old"] is not None][:SHOWN]
    values = [line[key] for line in shown for key, *_ in MARKS if line[key] is not None]
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or 0.01
    low, high = low - pad, high + pad
    height = TOP + ROW * len(shown) + 8

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = []
    for value in ticks(low, high):
        parts.append(tag("line", x1=at(value), x2=at(value), y1=TOP - 6, y2=height, stroke="var(--faint)"))
        parts.append(tag("text", f"{value:g}", x=at(value), y=TOP - 10, text_anchor="middle", class_="axis-name",
                         fill="var(--soft)", font_size=12))  # fmt: skip
    for number, line in enumerate(shown):
        middle = TOP + ROW * number + ROW / 2
        parts.append(tag("text", _named(line), x=LEFT - 12, y=middle + 4, text_anchor="end", fill="var(--ink)",
                         font_size=12))  # fmt: skip
        ends = [at(line[key]) for key in ("direct", "score") if line[key] is not None]
        if len(ends) == 2:
            parts.append(tag("line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, stroke="var(--rule)",
                             stroke_width=3))  # fmt: skip
        for key, shape, slot, meaning in MARKS:
            if line[key] is not None:
                dot = marker(shape, at(line[key]), middle, class_="mark")
                told = tag("title", f"{line['delta']}: {line[key]:.4g} {meaning}")
                parts.append(tag("g", told, dot, class_=f"arm-{slot}"))
    return tag("svg", tag("title", title), *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", width="100%")


def key_of_marks() -> list[tuple[Markup, str]]:
    """(swatch, meaning) of every marker."""
    return [
        (tag("svg", marker(shape, 7, 7, class_="mark"), viewBox="0 0 14 14", class_=f"swatch arm-{slot}",
             width=14, height=14), meaning)
        for _, shape, slot, meaning in MARKS
    ]  # fmt: skip


def _named(line: Line) -> str:
    name = f"{line['task']}, {line['method'] or 'delta'}, seed {line['seed']}"
    return name if len(name) <= 38 else name[:37] + "…"
