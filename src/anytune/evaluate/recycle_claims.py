"""What becomes of the claims of recyclable tuning in a grid: confirmed, not confirmed or undecided, form by form.

Each claim is a difference between arms over all cases, upgrades and tasks of a form (runs of one task and seed are one
observation), or a fall along the paths that were walked. "Confirmed" and "not confirmed" need an interval on one side
of 0 and a corrected sign-flip p below 0.05 (:mod:`anytune.evaluate.stability`); everything else is undecided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anytune.evaluate.compare import unit
from anytune.evaluate.recycle_arms import NO_DELTA, Line, Section, against, areas
from anytune.evaluate.scores import DECIDING_SEEDS, higher_is_better, number
from anytune.evaluate.stability import MARGIN, Against, hierarchical_difference

Word = Literal["confirmed", "not confirmed", "undecided"]
WORDS: Mapping[str, Word] = {"higher": "confirmed", "lower": "not confirmed", "undecided": "undecided"}


@dataclass(frozen=True)
class Claim:
    """A claim in one form of tuning.

    Attributes:
        text: what is claimed.
        measure: what it is measured by.
        mean, low, high: of the difference (of several that must hold, the smallest) or of the paths, in points.
        n: runs (of several comparisons, of the smallest).
    """

    text: str
    form: str
    measure: str
    word: Word
    mean: float | None
    low: float | None
    high: float | None
    n: int


def claims(found: Sequence[Section], paths: Sequence[Line] = ()) -> list[Claim]:
    """The claims of the paper (Qin, Qian et al. 2023), as far as the grid has the arms they need."""
    made: list[Claim] = []
    for form in dict.fromkeys(section.case.form for section in found):
        own = [section for section in found if section.case.form == form]
        control = own[0].control
        arms = {name: arm for name in ("direct", "initialize", "distill", "combined")
                if (arm := plain_arm(own, name)) is not None}  # fmt: skip
        if "direct" in arms:
            made.append(_compared(
                "outdated weights stay partly compatible", form, "direct reuse over always one answer",
                [against(own, NO_DELTA).get(arms["direct"])],
            ))  # fmt: skip
        made += connected([line for line in paths if line["form"] == form and not line["same_base"]], form, control)
        if "initialize" in arms:
            faster = against(own, control, areas).get(arms["initialize"])
            made.append(_compared("starting from them learns faster", form, "mean height of the validation curve, "
                                  f"{arms['initialize']} over {control}", [faster]))  # fmt: skip
        over_fresh = against(own, control)
        for name in ("initialize", "distill"):
            if name in arms:
                made.append(_compared(
                    f"{arms[name]} scores higher than tuning afresh", form, f"test, over {control}",
                    [over_fresh.get(arms[name])],
                ))  # fmt: skip
        if {"combined", "initialize", "distill"} <= arms.keys():
            both = [against(own, arms[name]).get(arms["combined"]) for name in ("initialize", "distill")]
            made.append(_compared(
                "both together are best", form, f"test, {arms['combined']} over {arms['initialize']} and over "
                f"{arms['distill']}", both,
            ))  # fmt: skip
    return made


def plain_arm(found: Sequence[Section], method: str) -> str | None:
    """The first arm that is this recycle method on the delta's own weights at the control's budget; None without."""
    for section in found:
        for arm, columns in section.runs.items():
            for lines in columns.values():
                for line in lines.values():
                    if (
                        line["kind"] == "recycle" and line["method"] == method and line["weights"] == "own"
                        and not line["hop"] and line.get("budget", 1) == 1
                    ):  # fmt: skip
                        return arm
    return None


def _compared(text: str, form: str, measure: str, found: Sequence[Against | None]) -> Claim:
    """A claim that holds where all comparisons are higher, and does not where one is lower."""
    there = [one for one in found if one is not None]
    if not there or len(there) < len(found):
        return Claim(text, form, measure, "undecided", None, None, None, 0)
    outcomes = {one.outcome for one in there}
    outcome = "lower" if "lower" in outcomes else "higher" if outcomes == {"higher"} else "undecided"
    first = min(there, key=lambda one: one.difference.mean)
    return Claim(text, form, measure, WORDS[outcome], first.difference.mean, first.difference.low,
                 first.difference.high, first.difference.n)  # fmt: skip


def connected(paths: Sequence[Line], form: str, control: str) -> list[Claim]:
    """Whether the line from the old tuned model to one tuned afresh on the new base stays as high as its lower end.

    The fall at a path's lowest point below its lower end is held against :data:`MARGIN` points: the claim is confirmed
    where the interval of the mean fall lies below it, not confirmed where it lies above; fewer than three seeds of a
    task decide nothing.
    """
    falls: dict[str, dict[Any, list[float]]] = {}
    for line in paths:
        fall = fall_of(line)
        if line["arm"] == control and fall is not None:
            falls.setdefault(line["task"], {}).setdefault(line["seed"], []).append(fall)
    if not falls:
        return []
    found = hierarchical_difference([
        ({seed: float(np.mean(values)) for seed, values in runs.items()}, dict.fromkeys(runs, 0.0))
        for runs in falls.values()
    ])  # fmt: skip
    assert found is not None
    word: Word = "undecided"
    if found.low is not None and found.high is not None and min(map(len, falls.values())) >= DECIDING_SEEDS:
        word = "confirmed" if found.high < MARGIN else "not confirmed" if found.low > MARGIN else "undecided"
    return [Claim(
        "both tuned models are connected", form, f"fall of the score along the line below its lower end, at most "
        f"{MARGIN} points, {control}", word, found.mean, found.low, found.high, found.n,
    )]  # fmt: skip


def fall_of(line: Line) -> float | None:
    """How far the score of a path's worst point lies below its worse end, in the unit of the reader.

    None where no path was walked, or a point of it has no number: what is not known is no level line.
    """
    if line["path"] is None or line["path"]["metric"] is None:
        return None
    metric = line["path"]["metric"]
    scores = [number(point["scores"].get(metric)) for point in line["path"]["points"]]
    sign = 1 if higher_is_better(metric) else -1
    known = [sign * score for score in scores if score is not None]
    return unit(metric) * (min(known[0], known[-1]) - min(known)) if len(known) == len(scores) else None
