"""How each arm looks, everywhere the same: a colour slot of the style sheet, a dash pattern and a marker.

The colours (in ``assets/page.css``, ``--arm-N``) are chosen to stay apart for the common kinds of colour blindness
and to keep 3:1 against both backgrounds; dash and marker tell arms apart without any colour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from anytune.evaluate.runs import DIRECT, FRESH, INITIALIZE, WHOLE_BUDGET, arm_rank
from anytune.report.svg import marker, tag


@dataclass(frozen=True)
class Look:
    """Colour slot, dash pattern (SVG; "" = solid) and marker shape of an arm."""

    slot: int
    dash: str
    shape: str


KNOWN = {
    INITIALIZE: Look(0, "", "circle"),
    FRESH: Look(1, "6 4", "square"),
    WHOLE_BUDGET: Look(2, "9 3 2 3", "triangle"),
    DIRECT: Look(3, "1.5 4", "diamond"),
}
OTHERS = (Look(4, "12 4", "cross"), Look(5, "4 2", "down"), Look(6, "8 2 2 2 2 2", "pentagon"))

MEANING = {
    DIRECT: "outdated weights put onto the new base, no training",
    INITIALIZE: "training starts from the outdated weights",
    FRESH: "plain tuning from the new base, equal budget",
    WHOLE_BUDGET: "plain tuning with the old and the new steps together",
}


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """A look for each arm, in reading order; arms beyond the known ones take the remaining looks in turn."""
    chosen: dict[str, Look] = {}
    for arm in sorted(set(arms), key=arm_rank):
        others = sum(known not in KNOWN for known in chosen)
        chosen[arm] = KNOWN.get(arm) or OTHERS[others % len(OTHERS)]
    return chosen


def swatch(look: Look, line: bool = True) -> Markup:
    """A small drawing of the arm's line and marker, for legends and tables."""
    drawn = [marker(look.shape, 15, 7, class_="mark")]
    if line:
        drawn.insert(0, tag("path", d="M1 7H29", class_="line", stroke_dasharray=look.dash or None))
    view = "0 0 30 14" if line else "8 0 14 14"
    return tag("svg", *drawn, class_=f"swatch arm-{look.slot}", viewBox=view, aria_hidden="true")
