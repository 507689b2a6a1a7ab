"""The figures of anytime matrices as SVG, for the page: drawn here, shown without any JavaScript."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from anytune.report.anytime_views import Heat, Path, Point, Views, best_settings
from anytune.report.panels import Scale, scale_over
from anytune.report.svg import marker, path, tag, ticks
from anytune.report.words import decimal, signed

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 320, 50, 16, 14, 44
CELL_WIDTH, CELL_HEIGHT, HEAD = 66, 30, 118
#: longest name that fits beside a row
NAME = 15
KINDS = {"own": "the domain just trained on", "unseen": "domains that have not come yet", "seen": "earlier domains"}
Place = Callable[[float, float], tuple[float, float]]


def heat_map(heat: Heat, largest: float) -> Markup:
    """One matrix: a row for each stage, gains above 0 in one colour and losses in the other.

    Args:
        largest: the value of full colour, shared by the maps that are read together.
    """
    n = len(heat.domains)
    width, height = HEAD + n * CELL_WIDTH + 4, 30 + n * CELL_HEIGHT + 6
    parts = []
    for task, name in enumerate(heat.domains):
        x = HEAD + (task + 0.5) * CELL_WIDTH
        parts.append(tag("text", _short(name, 9), x=x, y=18, text_anchor="middle", class_="head"))
    for stage, row in enumerate(heat.values):
        y = 28 + stage * CELL_HEIGHT
        label = f"{stage + 1} {_short(heat.domains[stage], NAME)}"
        parts.append(tag("text", label, x=HEAD - 8, y=y + 20, text_anchor="end", class_="head"))
        for task, value in enumerate(row):
            parts += _cell(HEAD + task * CELL_WIDTH, y, value, heat.gains, largest, own=task == stage)
    what = "gain over the base before the stream" if heat.gains else "test score"
    label = f"{heat.arm}, order {heat.order}: {what} on each domain (column) after each stage (row)"
    return tag("svg", tag("title", label), *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label,
               class_="heat")  # fmt: skip


def _cell(x: float, y: float, value: float | None, gains: bool, largest: float, *, own: bool) -> list[Markup]:
    place = {"x": x + 1.5, "y": y + 1.5, "width": CELL_WIDTH - 3, "height": CELL_HEIGHT - 3, "rx": 3}
    if value is None:
        return [tag("rect", **place, class_="none")]
    kind = ("up" if value >= 0 else "down") if gains else "plain"
    strength = abs(value) / largest if largest else 0.0
    parts = [tag("rect", **place, class_=kind, fill_opacity=f"{0.06 + 0.5 * strength:.3f}")]
    if own:
        parts.append(tag("rect", **place, class_="own"))
    text = signed(value) if gains else decimal(value)
    return [*parts, tag("text", text, x=x + CELL_WIDTH / 2, y=y + 20, text_anchor="middle")]


def frontier(
    points: Sequence[Point],
    views: Views,
    across_name: str = "A_Acc: adaptation",
    up_name: str = "O_Acc: domains not seen yet",
) -> Markup | None:
    """O_Acc upwards against A_Acc to the right: further up and to the right is better.

    Bars run over the runs' differences to the control; the dashed line joins the best settings of the control's own
    method. With other names it is the gains in held-out loss that are drawn.
    """
    if not points:
        return None
    across = scale_over([end for point in points for end in point.a_ends])
    up = scale_over([end for point in points for end in point.o_ends])
    at = placing(across, up)
    parts = axes(at, across, up, across_name, up_name)
    line = best_settings(points, views.plain)
    if len(line) > 1:
        parts.append(tag("path", d=path([at(*place) for place in line]), class_="target"))
    for point in points:
        slot, x, y = f"arm-{views.looks[point.arm].slot}", *at(point.a, point.o)
        sideways = path([at(point.a_ends[0], point.o), at(point.a_ends[1], point.o)])
        upright = path([at(point.a, point.o_ends[0]), at(point.a, point.o_ends[1])])
        parts += [tag("path", d=line, class_=f"line thin {slot}", opacity="0.45") for line in (sideways, upright)]
        said = f"{point.arm}: {decimal(point.a, 2)} across, {decimal(point.o, 2)} up ({point.runs} runs)"
        parts.append(tag("g", tag("title", said), marker(views.looks[point.arm].shape, x, y, class_=f"mark {slot}")))
    return picture(f"Upwards: {up_name}. To the right: {across_name}. The values are in the table.", parts)


def stage_curves(paths: Sequence[Path], kind: str, views: Views) -> Markup | None:
    """Mean gain over row 0 after each stage, one line an arm, with a band from the lowest to the highest run."""
    own = [one for one in paths if one.kind == kind]
    if not own:
        return None
    heights = scale_over([value for one in own for _, *values in one.points for value in values], include=0.0)
    stages = [stage for one in own for stage, *_ in one.points]
    across = Scale(min(stages) - 0.2, max(stages) + 0.2)
    at = placing(across, heights)
    parts = axes(at, across, heights, "stage", f"gain on {KINDS[kind]}", whole=True)
    parts.append(tag("path", d=path([at(across.low, 0.0), at(across.high, 0.0)]), class_="target"))
    for one in own:
        look = views.looks[one.arm]
        slot = f"arm-{look.slot}"
        if len(one.points) > 1:
            ends = [at(x, high) for x, _, _, high in one.points] + [at(x, low) for x, _, low, _ in one.points][::-1]
            parts.append(tag("path", d=path(ends, close=True), class_=f"band {slot}"))
        line = [at(x, mean) for x, mean, _, _ in one.points]
        parts.append(tag("path", d=path(line), class_=f"line {slot}", stroke_dasharray=look.dash or None))
        parts += [marker(look.shape, x, y, class_=f"mark {slot}") for x, y in line]
    return picture(f"Gain on {KINDS[kind]} after each stage, for each arm.", parts)


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def placing(across: Scale, up: Scale) -> Place:
    """From (x, y) in data to (x, y) in a drawing."""

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + across.place(x) / 100 * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up.place(y) / 100 * (HEIGHT - TOP - BOTTOM),
        )

    return at


def axes(at: Place, across: Scale, up: Scale, right: str, above: str, *, whole: bool = False) -> list[Markup]:
    """Ticks, grid and names of both axes; ``whole`` for whole numbers to the right."""
    parts, floor = [], HEIGHT - BOTTOM
    for value in ticks(up.low, up.high, 5):
        y = at(across.low, value)[1]
        parts.append(tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", f"{value:g}".replace("-", "−"), x=LEFT - 7, y=y + 4, text_anchor="end"))
    parts.append(tag("path", d=f"M{LEFT} {floor}H{WIDTH - RIGHT}", class_="axis"))
    for value in ticks(across.low, across.high, 5):
        if whole and value != int(value):
            continue
        x = at(value, up.low)[0]
        parts.append(tag("path", d=f"M{x:.1f} {floor}v4", class_="axis"))
        parts.append(tag("text", f"{value:g}".replace("-", "−"), x=x, y=floor + 17, text_anchor="middle"))
    parts.append(tag("text", right, x=WIDTH - RIGHT, y=HEIGHT - 8, text_anchor="end", class_="name"))
    parts.append(tag("text", above, x=LEFT, y=10, class_="name"))
    return parts


def picture(label: str, parts: Sequence[Markup]) -> Markup:
    """The drawing; ``label`` is for readers who hear it."""
    return tag("svg", tag("title", label), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label,
               class_="curves")  # fmt: skip
