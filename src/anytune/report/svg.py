"""A few lines to write SVG safely: every attribute and text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor, log10

from markupsafe import Markup, escape

#: marker outlines around (0, 0), about 9 units across; told apart by shape, without colour
MARKERS = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "square": "M-3.6-3.6h7.2v7.2h-7.2Z",
    "triangle": "M0-4.8L4.6 3.6H-4.6Z",
    "diamond": "M0-5.2L5.2 0L0 5.2L-5.2 0Z",
    "cross": "M-4.6-1.5h3.1v-3.1h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1Z",
    "down": "M0 4.8L4.6-3.6H-4.6Z",
    "pentagon": "M0-4.9L4.7-1.5L2.9 4H-2.9L-4.7-1.5Z",
}


def tag(name: str, *content: str | Markup, **attributes: object) -> Markup:
    """One element. ``class_`` becomes ``class``, other underscores become hyphens; None leaves an attribute out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _text(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(part) for part in content)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def path(points: Iterable[tuple[float, float]], close: bool = False) -> str:
    """The ``d`` of a line through the points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if close else "")


def marker(shape: str, x: float, y: float, **attributes: object) -> Markup:
    """A marker of a shape of ``MARKERS`` centred at (x, y)."""
    return tag("path", d=MARKERS[shape], transform=f"translate({x:.1f} {y:.1f})", **attributes)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about ``about`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next((size * power for size in (1, 2, 5) if size * power >= rough), 10 * power)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(index * step, 10) + 0.0 for index in range(first, last + 1)]
