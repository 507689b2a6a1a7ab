"""Figures of a grid of recycling as PNG and SVG files, each with its numbers as CSV (extra: ``anytune[figures]``)."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.evaluate.recycle_arms import Case, Line, sections
from anytune.evaluate.recycle_points import Broken, Estimate, Landing, Learning, flips_against_gain, landings, learning
from anytune.manifests import write_atomic
from anytune.report.arms import Look
from anytune.report.figures import COLOURS, MARKERS, matplotlib_figure, plain_text, save_figure
from anytune.report.recycle_grid_charts import distance_scale, grid_looks, series_of
from anytune.report.recycle_tables import gold_of

#: plots in one row; the cases of a form stand in one where they are no more
ACROSS = 5
#: of the range of distances, between the arms of one upgrade
DODGE = 0.008


@dataclass(frozen=True)
class CaseViews:
    """What the figures show of one case."""

    case: Case
    landings: Sequence[Landing]
    learning: Sequence[Learning]
    flips: Sequence[Broken]


@dataclass(frozen=True)
class Views:
    """What the figures show of a grid; ``looks`` says how an arm is drawn."""

    control: str
    looks: Mapping[str, Look]
    distances: Mapping[str, float]
    cases: Sequence[CaseViews]


def views(lines: Sequence[Line], upgrades: Sequence[Line] = (), tasks: Sequence[Line] = ()) -> Views:
    """The views of a grid, from the lines of ``runs.jsonl``, ``bases.jsonl`` and ``tasks.jsonl``."""
    made, gold = sections(lines), gold_of(tasks)
    distances = {line["upgrade"]: float(line["distance"]["relative"]) for line in upgrades}
    return Views(
        lines[0]["control"], grid_looks(list(dict.fromkeys(arm for section in made for arm in section.arms))),
        distances,
        [CaseViews(section.case, landings(section, distances), learning(section), flips_against_gain(section, gold))
         for section in made],
    )  # fmt: skip


Draw = Callable[[Any, CaseViews, Views], None]


def write_recycle_figures(
    lines: Sequence[Line], folder: str | Path, upgrades: Sequence[Line] = (), tasks: Sequence[Line] = ()
) -> list[Path]:
    """Write ``score-against-distance``, ``gain-against-distance``, ``learning-curves`` and ``flips-against-gain``.

    Each as PNG and SVG, a plot for each case, and its numbers as CSV. A figure that there is nothing for is left out.

    Returns:
        The files, in the order written.

    Raises:
        AnytuneError: matplotlib is not installed.
        StoreError: the folder cannot be written.
    """
    figure_class, found = matplotlib_figure(), views(lines, upgrades, tasks)
    along = "relative distance of the bases"
    if found.distances:
        near = sorted(found.distances.items(), key=lambda one: one[1])
        along += f" ({', '.join(f'{name}: {far:.3g}' for name, far in near)})"
    gained = f"gain over {found.control}"
    figures: list[tuple[str, str, str, Callable[[CaseViews], bool], Draw, Iterable[Sequence[Any]]]] = [
        ("score-against-distance", along, "test score", lambda one: bool(series_of(one.landings, gains=False)),
         _scores, _landing_numbers(found, gains=False)),
        ("gain-against-distance", along, gained, lambda one: bool(series_of(one.landings, gains=True)),
         _gains, _landing_numbers(found, gains=True)),
        ("learning-curves", "training steps", "validation score", lambda one: bool(one.learning), _learning,
         _learning_numbers(found)),
        ("flips-against-gain", gained, "negative flips, % of the answers", lambda one: bool(one.flips), _flips,
         _flip_numbers(found)),
    ]  # fmt: skip
    written: list[Path] = []
    for name, across, up, there, draw, numbers in figures:
        cases = [case for case in found.cases if there(case)]
        if cases:
            stem = Path(folder) / name
            written += save_figure(_figure(figure_class, cases, found, draw, across, up), stem)
            written.append(stem.with_name(f"{name}.csv"))
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(numbers)
            write_atomic(written[-1], out.getvalue().encode())
    return written


def _figure(figure_class: Any, cases: Sequence[CaseViews], found: Views, draw: Draw, across: str, up: str) -> Any:
    forms = [case.case.form for case in cases]
    wide = min(ACROSS, max(forms.count(form) for form in forms))
    down = -(-len(cases) // wide)
    figure = figure_class(figsize=(4.4 * max(wide, 1.4), 3.3 * down + 1.2), layout="constrained")
    handles: dict[str, Any] = {}
    for place, case in enumerate(cases, 1):
        plot = figure.add_subplot(down, wide, place)
        draw(plot, case, found)
        plot.set_title(plain_text(str(case.case)), loc="left", fontsize=9)
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(alpha=0.25)
        for handle, label in zip(*plot.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.supxlabel(plain_text(textwrap.fill(across, 55 * max(wide, 2))), fontsize=10)
    figure.supylabel(plain_text(up), fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=max(2, 3 * wide // 2),
                  frameon=False, fontsize=8)  # fmt: skip
    return figure


def _scores(plot: Any, case: CaseViews, found: Views) -> None:
    _by_distance(plot, case, found, gains=False)


def _gains(plot: Any, case: CaseViews, found: Views) -> None:
    plot.axhline(0.0, color=COLOURS[1], linewidth=0.8)
    _by_distance(plot, case, found, gains=True)


def _by_distance(plot: Any, case: CaseViews, found: Views, *, gains: bool) -> None:
    series = series_of(case.landings, gains=gains)
    scale = distance_scale([landing.distance for own in series.values() for landing, _ in own])
    apart = DODGE * (scale.high - scale.low)
    for place, (arm, own) in enumerate(series.items()):
        aside = apart * (place - (len(series) - 1) / 2)
        plot.errorbar(
            [landing.distance + aside for landing, _ in own], [one.mean for _, one in own],
            yerr=_bars([one for _, one in own]), label=plain_text(arm), elinewidth=0.8, linewidth=1.2, markersize=4.5,
            marker=MARKERS[found.looks[arm].shape], color=COLOURS[found.looks[arm].slot],
            linestyle=_dash(found.looks[arm]),
        )  # fmt: skip
    edge = apart * (len(series) - 1) / 2  # or the outermost of many arms would lie beyond the axis
    plot.set_xlim(scale.low - edge, scale.high + edge)


def _learning(plot: Any, case: CaseViews, found: Views) -> None:
    plot.axhline(case.learning[0].mean[-1], color=COLOURS[1], linewidth=0.8)
    for one in case.learning:
        look = found.looks[one.arm]
        plot.plot(one.steps, one.mean, color=COLOURS[look.slot], linestyle=_dash(look), marker=MARKERS[look.shape],
                  markersize=4, label=plain_text(one.arm))  # fmt: skip
        if one.low is not None:
            plot.fill_between(one.steps, one.low, one.high, color=COLOURS[look.slot], alpha=0.14, linewidth=0)


def _flips(plot: Any, case: CaseViews, found: Views) -> None:
    plot.axvline(0.0, color=COLOURS[1], linewidth=0.8)
    for one in case.flips:
        look = found.looks[one.arm]
        plot.errorbar(
            [one.gain.mean], [one.flips.mean], xerr=_bars([one.gain]), yerr=_bars([one.flips]),
            fmt=MARKERS[look.shape], color=COLOURS[look.slot], elinewidth=0.8, alpha=0.9, label=plain_text(one.arm),
        )  # fmt: skip


def _bars(found: Sequence[Estimate]) -> list[list[float]]:
    """How far each interval reaches below and above its mean: a bootstrap's quantile may lie a rounding beyond it."""
    return [[max(0.0, one.mean - one.ends[0]) for one in found], [max(0.0, one.ends[1] - one.mean) for one in found]]


def _dash(look: Look) -> Any:
    return (0, tuple(float(part) / 2 for part in look.dash.split())) if look.dash else "solid"


# Numbers


def _landing_numbers(found: Views, *, gains: bool) -> Iterable[Sequence[Any]]:
    yield ["form", "old", "new", "arm", "upgrade", "distance", "runs", "gain" if gains else "score", "low", "high"]
    for case in found.cases:
        for arm, own in series_of(case.landings, gains=gains).items():
            for one, there in own:
                yield [*case.case, arm, one.upgrade, round(one.distance, 6), one.runs, *_rounded(there)]


def _learning_numbers(found: Views) -> Iterable[Sequence[Any]]:
    yield ["form", "old", "new", "arm", "step", "validation", "low", "high", "runs", "left_out"]
    for case in found.cases:
        for one in case.learning:
            for place, step in enumerate(one.steps):
                ends = ["" if band is None else round(float(band[place]), 6) for band in (one.low, one.high)]
                yield [*case.case, one.arm, float(step), round(float(one.mean[place]), 6), *ends, one.runs,
                       one.left_out]  # fmt: skip


def _flip_numbers(found: Views) -> Iterable[Sequence[Any]]:
    yield ["form", "old", "new", "arm", "runs", "gain", "gain_low", "gain_high", "flips", "flips_low", "flips_high"]
    for case in found.cases:
        for one in case.flips:
            yield [*case.case, one.arm, one.runs, *_rounded(one.gain), *_rounded(one.flips)]


def _rounded(one: Estimate) -> list[Any]:
    return ["" if value is None else round(value, 6) for value in one]
