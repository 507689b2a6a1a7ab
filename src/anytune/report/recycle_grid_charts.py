"""The figures of a grid of recycling as SVG, for the page: drawn here, shown without any JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from anytune.evaluate.recycle_arms import NO_DELTA, NOTHING
from anytune.evaluate.recycle_points import Broken, Estimate, Landing, Learning
from anytune.evaluate.runs import WHOLE_BUDGET
from anytune.report.anytime_charts import LEFT, RIGHT, WIDTH, axes, picture, placing
from anytune.report.arms import KNOWN, OTHERS, Look
from anytune.report.panels import Scale, scale_over
from anytune.report.svg import marker, path, tag
from anytune.report.words import decimal, interval_text

#: units of the drawing between the arms of one upgrade, whose intervals would hide each other
DODGE = 3.0


#: Looks of arms by their names: those the rest of the page has too are the same there; grey is what no old weights had
#: a part in on the new base. Learning curves cross, so that their arms differ in colour.
NAMED = {
    **{name: look for name, look in KNOWN.items() if name != WHOLE_BUDGET},
    "distill": Look(4, "12 4", "cross"),
    "combined": Look(5, "4 2", "down"),
    NOTHING: Look(1, "1.5 4", "pentagon"),
    NO_DELTA: Look(1, "1.5 4", "down"),
}
#: Colour slots of all other arms in turn, with dashes and shapes that go round at another pace.
_SLOTS = (6, 2, 4, 0, 5, 3, 1)
_DASHES = ("8 2 2 2 2 2", "9 3 2 3", "", "4 2", "1.5 4")
_SHAPES = ("pentagon", "triangle", "diamond", "square", "circle", "cross")


def grid_looks(arms: Sequence[str]) -> dict[str, Look]:
    """How each arm looks; no two share colour and marker as long as there are enough."""
    chosen = {arm: NAMED[arm] for arm in arms if arm in NAMED}
    places = iter(range(len(_SLOTS) * len(_SHAPES)))
    taken = {(look.slot, look.shape) for look in NAMED.values()}
    for arm in arms:
        if arm in chosen:
            continue
        look = OTHERS[0]
        for place in places:
            look = Look(_SLOTS[place % 7], _DASHES[place % 5], _SHAPES[place % 6])
            if (look.slot, look.shape) not in taken:
                break
        chosen[arm] = look
    return {arm: chosen[arm] for arm in arms}


def series_of(found: Sequence[Landing], *, gains: bool) -> dict[str, list[tuple[Landing, Estimate]]]:
    """Arm -> its points, near upgrades first; gains without 'always one answer', far below all others."""
    made: dict[str, list[tuple[Landing, Estimate]]] = {}
    for one in found:
        there = one.gain if gains else one.score
        if there is not None and not (gains and one.arm == NO_DELTA):
            made.setdefault(one.arm, []).append((one, there))
    return made


def distance_scale(values: Sequence[float]) -> Scale:
    """A scale of distances; around one alone as far to both sides as it is from 0."""
    low, high = min(values), max(values)
    return scale_over(values) if high > low else Scale(low - (low or 1.0), high + (high or 1.0))


def beside_each_other(distances: Sequence[float], arms: int) -> tuple[Scale, float]:
    """A scale on which all arms find room beside each other at every distance, and the units between two of them."""
    width, scale = WIDTH - LEFT - RIGHT, distance_scale(distances)
    apart = min(DODGE, width / 4 / max(arms - 1, 1))
    edge = apart * (arms - 1) / 2  # or the outermost of many arms would lie beyond the axis
    room = edge / (width - 2 * edge) * (scale.high - scale.low)
    return Scale(scale.low - room, scale.high + room), apart


def by_distance(found: Sequence[Landing], looks: Mapping[str, Look], control: str, *, gains: bool) -> Markup | None:
    """Scores or gains upwards, the distance of the upgrade's base to the right, a line an arm; None without any."""
    series = series_of(found, gains=gains)
    points = [point for one in series.values() for point in one]
    if not points:
        return None
    across, apart = beside_each_other([landing.distance for landing, _ in points], len(series))
    up = scale_over([end for _, one in points for end in one.ends], include=0.0 if gains else None)
    at, what = placing(across, up), f"gain over {control}" if gains else "test score"
    parts = axes(at, across, up, "relative distance of the bases", what)
    if gains:
        parts.append(tag("path", d=path([at(across.low, 0.0), at(across.high, 0.0)]), class_="target"))
    for place, (arm, own) in enumerate(series.items()):
        look, aside = looks[arm], apart * (place - (len(series) - 1) / 2)
        slot = f"arm-{look.slot}"
        places = [(at(one.distance, 0)[0] + aside, *(at(0, y)[1] for y in (here.mean, *here.ends)))
                  for one, here in own]  # fmt: skip
        if len(places) > 1:
            line = path([(x, y) for x, y, _, _ in places])
            parts.append(tag("path", d=line, class_=f"line thin {slot}", stroke_dasharray=look.dash or None))
        for (one, here), (x, y, low, high) in zip(own, places, strict=True):
            parts.append(tag("path", d=path([(x, low), (x, high)]), class_=f"line thin {slot}", opacity="0.45"))
            said = f"{arm} on {one.upgrade} (distance {one.distance:.3g}): {told(here)}, {one.runs} runs"
            parts.append(tag("g", tag("title", said), marker(look.shape, x, y, class_=f"mark {slot}")))
    return picture(f"Upwards: {what}. To the right: distance of the bases. Means are in the table.", parts)


def learning_curves(found: Sequence[Learning], looks: Mapping[str, Look]) -> Markup | None:
    """Validation scores by step, a line and the band of its interval an arm; None without any.

    A level line where the first of them, the control, ended.
    """
    if not found:
        return None
    values = [float(value) for one in found for band in (one.mean, one.low, one.high) if band is not None
              for value in band]  # fmt: skip
    across, up = Scale(0.0, float(max(one.steps[-1] for one in found))), scale_over(values)
    at = placing(across, up)
    parts = axes(at, across, up, "training steps", "validation score", whole=True)
    target = float(found[0].mean[-1])
    parts.append(tag("path", d=path([at(across.low, target), at(across.high, target)]), class_="target"))
    for one in found:
        look = looks[one.arm]
        slot, steps = f"arm-{look.slot}", [float(step) for step in one.steps]
        if one.low is not None and one.high is not None:
            ends = [at(x, float(y)) for x, y in zip(steps, one.high, strict=True)]
            ends += [at(x, float(y)) for x, y in zip(steps, one.low, strict=True)][::-1]
            parts.append(tag("path", d=path(ends, close=True), class_=f"band {slot}"))
        line = [at(x, float(y)) for x, y in zip(steps, one.mean, strict=True)]
        parts.append(tag("path", d=path(line), class_=f"line {slot}", stroke_dasharray=look.dash or None))
        said = f"{one.arm}: {decimal(float(one.mean[0]), 2)} at step {steps[0]:g}, "
        said += f"{decimal(float(one.mean[-1]), 2)} at step {steps[-1]:g} ({runs_text(one)})"
        marks = [marker(look.shape, x, y, class_=f"mark {slot}") for x, y in line]
        parts.append(tag("g", tag("title", said), *marks))
    return picture("Validation score while training, for " + ", ".join(one.arm for one in found), parts)


def flips_chart(found: Sequence[Broken], looks: Mapping[str, Look], control: str) -> Markup | None:
    """Negative flips upwards, gain over the control to the right: further down and to the right is better."""
    if not found:
        return None
    across = scale_over([end for one in found for end in one.gain.ends], include=0.0)
    up = scale_over([end for one in found for end in one.flips.ends], include=0.0)
    at = placing(across, up)
    parts = axes(at, across, up, f"gain over {control}", "negative flips, % of the answers")
    parts.append(tag("path", d=path([at(0.0, up.low), at(0.0, up.high)]), class_="target"))
    for one in found:
        look = looks[one.arm]
        slot, x, y = f"arm-{look.slot}", one.gain.mean, one.flips.mean
        bars = [[at(end, y) for end in one.gain.ends], [at(x, end) for end in one.flips.ends]]
        parts += [tag("path", d=path(bar), class_=f"line thin {slot}", opacity="0.45") for bar in bars]
        said = f"{one.arm}: gain {told(one.gain)}, negative flips {told(one.flips)}, {one.runs} runs"
        parts.append(tag("g", tag("title", said), marker(look.shape, *at(x, y), class_=f"mark {slot}")))
    return picture(f"Upwards: negative flips. To the right: gain over {control}. The values are in the table.", parts)


def told(one: Estimate) -> str:
    """``61.20 (60.1 to 62.3)``."""
    spread = interval_text(one.low, one.high)
    return decimal(one.mean, 2) + (f" ({spread})" if spread else "")


def runs_text(one: Learning) -> str:
    """``18 runs, 1 left out``."""
    return f"{one.runs} runs" + (f", {one.left_out} left out" if one.left_out else "")
