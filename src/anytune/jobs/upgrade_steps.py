"""What an upgrade of a store decides by: the steps, what counts as brought back, and the choice. Pure functions.

The steps, cheapest first; a delta climbs until one brings it back within the tolerance of its old score:

    keep         the outdated weights as they are on the new base; no training
    scale        a part of the difference, the coefficient chosen on the held-out rows; no training
    initialize   start from them and tune shortly, ending as soon as the score is back (needs training rows)
    combined     the same with the old model as teacher beside the labels (needs training rows)
    distill      the old model as teacher alone: where the weights do not fit the new base, or where no row has a label
    retune       tune afresh as it was tuned, ending as soon as the score is back (needs training rows)

Only scores on the held-out rows stored beside a delta decide. Where nothing brings it back, the best of what was tried
is taken and flagged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from anytune.errors import SettingsError
from anytune.metrics import METRICS

#: Scores that differ by less are equal: sums are rounded.
ROUNDING = 1e-9
_SPAN = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(s|m|min|h)?\s*", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Step:
    """One step of the ladder.

    Attributes:
        name: what decisions call it.
        share: of the steps the delta was tuned with, that it trains; 0 for none.
        rows: it needs labelled training rows.
        fits: it puts the outdated weights onto the new base, so they must fit there.
        meaning: for readers.
    """

    name: str
    share: float
    rows: bool
    fits: bool
    meaning: str


STEPS = (
    Step("keep", 0.0, False, True, "as it is, without training"),
    Step("scale", 0.0, False, True, "a part of the difference, without training"),
    Step("initialize", 0.25, True, True, "short tuning from the old weights"),
    Step("combined", 0.5, True, True, "tuning from the old weights with the old model as teacher"),
    Step("distill", 0.5, False, False, "taught by the old model alone"),
    Step("retune", 1.0, True, False, "tuned afresh"),
)
BY_NAME = {step.name: step for step in STEPS}
#: Coefficients that ``scale`` tries beside 1, which is ``keep``; 0 is the new base with the old head.
COEFFICIENTS = (0.0, 0.25, 0.5, 0.75, 1.25)


@dataclass(frozen=True)
class Attempt:
    """One step that was tried on one delta.

    Attributes:
        step: its name; "old" is the delta on its own base.
        score: main metric on the held-out rows; None where it failed.
        seconds: what it cost.
        scores: all metrics.
        settings: what was chosen in it (a coefficient, training steps made).
        problem: why it failed.
    """

    step: str
    score: float | None
    seconds: float
    scores: Mapping[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class Decision:
    """What was taken for one delta.

    Attributes:
        step: taken; None where nothing could be.
        score: of what was taken.
        old: the score on the old base.
        goal: what had to be reached.
        flag: "" brought back; "short" all steps tried, none reached the goal; "rows" steps were left out for want of
            training rows; "budget" the time was up before all steps were tried.
        reason: a sentence.
    """

    step: str | None
    score: float | None
    old: float
    goal: float
    flag: str
    reason: str

    @property
    def final(self) -> bool:
        """Whether giving the same command again could change nothing."""
        return self.flag in ("", "short")


def goal_of(old: float, metric: str, tolerance: float) -> float:
    """What counts as brought back: ``tolerance`` below the old score in the metric's own unit (0.01 is one point).

    Of an error (mse, perplexity), which has no top, it is that share above the old one.
    """
    return old - tolerance if METRICS[metric].higher_is_better else old * (1 + tolerance)


def worth(score: float | None, metric: str) -> float:
    """Higher is better; a score that is missing or NaN is worth least."""
    if score is None or math.isnan(score):
        return -math.inf
    return score if METRICS[metric].higher_is_better else -score


def reaches(score: float | None, goal: float, metric: str) -> bool:
    """Whether a score is as good as the goal."""
    return worth(score, metric) >= worth(goal, metric) - ROUNDING


def ladder(*, rows: bool, texts: bool, fits: bool, scales: bool, only: Collection[str] | None = None) -> list[str]:
    """The steps that one delta may climb, in order.

    Args:
        rows: there are labelled training rows.
        texts: there are texts without labels.
        fits: its weights can be put onto the new base.
        scales: its difference can be multiplied.
        only: steps that are wanted; None for all.
    """
    found = []
    for step in STEPS:
        wanted = only is None or step.name in only
        possible = (rows or not step.rows) and (fits or not step.fits) and (scales or step.name != "scale")
        if step.name == "distill":  # beside labels and fitting weights, combined does what it does and more
            possible = (rows and not fits) or (texts and not rows)
        if wanted and possible:
            found.append(step.name)
    return found


def next_step(attempts: Sequence[Attempt], climb: Sequence[str], goal: float, metric: str) -> str | None:
    """The cheapest step not tried yet; None once one has reached the goal, or all were tried."""
    if any(reaches(attempt.score, goal, metric) for attempt in attempts if attempt.step != "old"):
        return None
    tried = {attempt.step for attempt in attempts}
    return next((name for name in climb if name not in tried), None)


def decide(
    attempts: Sequence[Attempt], climb: Sequence[str], metric: str, tolerance: float, *, lacks_rows: bool,
    lacking: str | None = None,
) -> Decision:  # fmt: skip
    """What to take of what was tried.

    Args:
        attempts: with the one called "old".
        climb: the steps that this delta may climb.
        lacks_rows: steps are missing from ``climb`` because there are no training rows.
        lacking: why they cannot be had, where somebody named them.
    """
    old = next(attempt.score for attempt in attempts if attempt.step == "old")
    assert old is not None
    goal = goal_of(old, metric, tolerance)
    tried = [attempt for attempt in attempts if attempt.step != "old"]
    allowed = f"within {allowance(tolerance, metric)} of {old:.4g} on the old base"
    for attempt in tried:
        if reaches(attempt.score, goal, metric):
            said = f"{attempt.step} scores {attempt.score:.4g}, {allowed}"
            return Decision(attempt.step, attempt.score, old, goal, "", said)
    left = [name for name in climb if name not in {attempt.step for attempt in tried}]
    flag = "budget" if left else "rows" if lacks_rows else "short"
    why = {
        "budget": f"the budget ended before {left[0] if left else ''}",
        "rows": "there are no training rows for more" + (f" ({lacking})" if lacking else ""),
        "short": "nothing is left to try",
    }[flag]
    best = max(tried, key=lambda attempt: worth(attempt.score, metric), default=None)
    if best is None or best.score is None:
        problem = next((attempt.problem for attempt in tried if attempt.problem), "nothing was tried")
        return Decision(None, None, old, goal, flag, f"nothing could be made of it ({problem}); {why}")
    said = f"{best.step} scores {best.score:.4g}, not {allowed}; {why}"
    return Decision(best.step, best.score, old, goal, flag, said)


def best_coefficient(value: Callable[[float], float], whole: float, enough: float) -> float:
    """The coefficient of :data:`COEFFICIENTS` and 1 with the highest value, walking away from 1.

    A difference that fits less the further it is scaled down will not fit better still further down: each direction is
    followed as long as it gets no worse, and the walk ends where ``enough`` is reached. Of equal values the one
    nearest to 1 is taken.

    Args:
        value: coefficient -> what it is worth, higher is better; asked at most once for each.
        whole: what 1 is worth.
        enough: worth enough.
    """
    grid = sorted({1.0, *COEFFICIENTS})
    best, highest = 1.0, whole
    for way in (-1, 1):
        place, last = grid.index(1.0) + way, whole
        while 0 <= place < len(grid):
            found = value(grid[place])
            if found > highest:
                best, highest = grid[place], found
            if highest >= enough - ROUNDING:
                return best
            if found < last:
                break
            place, last = place + way, found
    return best


def share_of(text: str | float) -> float:
    """``"1%"`` or ``0.01``, as a share.

    Raises:
        SettingsError: it is no number from 0 to 1.
    """
    try:
        value = float(text.strip().removesuffix("%")) if isinstance(text, str) else float(text)
    except ValueError:
        value = math.nan
    if isinstance(text, str) and text.strip().endswith("%"):
        value /= 100
    if not 0 <= value <= 1:
        raise SettingsError(f"tolerance = {text}", why="It is the part of a score that may be lost.", fix="1%")
    if value == 1 and not (isinstance(text, str) and text.strip().endswith("%")):
        raise SettingsError(
            f"tolerance = {text}", why="That is all of a score: every delta would count as brought back.",
            fix="1%   (or 100%, if all of it is meant)",
        )  # fmt: skip
    return value


def share_text(share: float) -> str:
    """``0.01`` as ``1 %``."""
    return f"{100 * share:.4g} %"


def allowance(share: float, metric: str) -> str:
    """What may be lost of a metric: points of a score, a share of an error."""
    if not METRICS[metric].higher_is_better:
        return share_text(share)
    points = f"{100 * share:.4g}"
    return f"{points} point" + ("" if points == "1" else "s")


def seconds_of(text: str | float | None) -> float | None:
    """``"90s"``, ``"30m"``, ``"2h"`` or a number of seconds; None for no limit.

    Raises:
        SettingsError: it is no span of time.
    """
    if text is None:
        return None
    found = _SPAN.fullmatch(str(text))
    if not found or not float(found[1]) > 0:
        raise SettingsError(f"budget = {text}", why="It is a span of time.", fix="30m")
    return float(found[1]) * _SECONDS[(found[2] or "").lower()]
