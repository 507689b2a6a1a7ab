"""Figures of anytime matrices as PNG and SVG files, each with its numbers as CSV (extra: ``anytune[figures]``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from anytune.evaluate.anytime import METRICS, Line
from anytune.manifests import write_atomic
from anytune.report.anytime_charts import KINDS
from anytune.report.anytime_views import Point, Views, best_settings, views
from anytune.report.arms import Look
from anytune.report.figures import COLOURS, MARKERS, matplotlib_figure, plain_text, save_figure

#: heat-maps in one row of the figure
ACROSS = 3


def write_anytime_figures(lines: Sequence[Line], folder: str | Path, stages: Sequence[Line] = ()) -> list[Path]:
    """Write ``heat-maps``, ``o-against-a`` (scores and losses), ``stages``, ``arms``: PNG, SVG, and numbers as CSV.

    A figure that there is nothing for (one domain has no O_Acc) is left out.

    Returns:
        The files, in the order written.

    Raises:
        AnytuneError: matplotlib is not installed.
        StoreError: the folder cannot be written.
    """
    figure_class, found = matplotlib_figure(), views(lines, stages)
    written: list[Path] = []
    figures: list[tuple[str, bool, Callable[[Any, Views], Any], Iterable[Sequence[Any]]]] = [
        ("heat-maps", bool(found.heats), _heat_maps, _heat_numbers(found)),
        ("o-against-a", bool(found.points), _score_points, _frontier_numbers(found.points, "acc")),
        ("o-against-a-losses", bool(found.loss_points), _loss_points, _frontier_numbers(found.loss_points, "gain")),
        ("stages", bool(found.paths), _stages, _stage_numbers(found)),
        ("arms", bool(found.bars), _arms, _arm_numbers(found)),
    ]
    for name, there, draw, numbers in figures:
        if there:
            stem = Path(folder) / name
            written += save_figure(draw(figure_class, found), stem)
            written.append(stem.with_name(f"{name}.csv"))
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(numbers)
            write_atomic(written[-1], out.getvalue().encode())
    return written


def _heat_maps(figure_class: Any, found: Views) -> Any:
    heats = found.heats
    across = min(ACROSS, len(heats))
    down = -(-len(heats) // across)
    n = len(heats[0].domains)
    figure = figure_class(figsize=((0.75 * n + 2.0) * across, (0.5 * n + 1.3) * down), layout="constrained")
    largest = max(heat.largest for heat in heats) or 1.0
    for place, heat in enumerate(heats, 1):
        plot = figure.add_subplot(down, across, place)
        values = [[float("nan") if value is None else value for value in row] for row in heat.values]
        low = -largest if heat.gains else 0.0
        plot.imshow(values, cmap="RdBu" if heat.gains else "Blues", vmin=low, vmax=largest, aspect="auto")
        for stage, row in enumerate(heat.values):
            for task, value in enumerate(row):
                if value is not None:
                    plot.text(task, stage, f"{value:+.1f}" if heat.gains else f"{value:.1f}", ha="center", va="center",
                              fontsize=8, fontweight="bold" if task == stage else "normal",
                              color="white" if abs(value) > 0.7 * largest else "black")  # fmt: skip
        names = [plain_text(name) for name in heat.domains]
        plot.set_xticks(range(n), names, rotation=35, ha="right", fontsize=8)
        plot.set_yticks(range(n), [f"{stage} {name}" for stage, name in enumerate(names, 1)], fontsize=8)
        what = "gain over row 0" if heat.gains else "score"
        plot.set_title(plain_text(f"{heat.arm}, order {heat.order}: {what}"), loc="left", fontsize=9)
    return figure


def _score_points(figure_class: Any, found: Views) -> Any:
    return _scatter(figure_class, found, found.points, "A_Acc (adaptation)", "O_Acc (domains not seen yet)")


def _loss_points(figure_class: Any, found: Views) -> Any:
    return _scatter(figure_class, found, found.loss_points, "fall of the loss on a stage's own domain (0.01 nats)",
                    "fall on domains not seen yet (0.01 nats)")  # fmt: skip


def _scatter(figure_class: Any, found: Views, points: Sequence[Point], across: str, up: str) -> Any:
    figure, plot = _plot(figure_class, across, up)
    line = best_settings(points, found.plain)
    if len(line) > 1:
        plot.plot(*zip(*line, strict=True), color=COLOURS[1], linewidth=0.8, linestyle="--", zorder=0)
    for point in points:
        look = found.looks[point.arm]
        plot.errorbar(
            [point.a], [point.o], xerr=[[point.a - point.a_ends[0]], [point.a_ends[1] - point.a]],
            yerr=[[point.o - point.o_ends[0]], [point.o_ends[1] - point.o]], fmt=MARKERS[look.shape],
            color=COLOURS[look.slot], elinewidth=0.8, alpha=0.9, label=plain_text(point.arm),
        )  # fmt: skip
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _stages(figure_class: Any, found: Views) -> Any:
    kinds = [kind for kind in KINDS if any(path.kind == kind for path in found.paths)]
    figure = figure_class(figsize=(4.6 * len(kinds), 3.8), layout="constrained")
    for place, kind in enumerate(kinds, 1):
        plot = figure.add_subplot(1, len(kinds), place)
        plot.axhline(0.0, color=COLOURS[1], linewidth=0.8)
        own = [path for path in found.paths if path.kind == kind]
        for one in own:
            look = found.looks[one.arm]
            stages, mean, low, high = (list(values) for values in zip(*one.points, strict=True))
            plot.plot(stages, mean, color=COLOURS[look.slot], linestyle=_dash(look), marker=MARKERS[look.shape],
                      label=plain_text(one.arm))  # fmt: skip
            plot.fill_between(stages, low, high, color=COLOURS[look.slot], alpha=0.12, linewidth=0)
        plot.set_title(f"gain on {KINDS[kind]}", loc="left", fontsize=9)
        plot.set_xlabel("stage")
        plot.set_ylabel("points" if place == 1 else "")
        plot.set_xticks(sorted({stage for one in own for stage, *_ in one.points}))
        plot.spines[["top", "right"]].set_visible(False)
    figure.legend(*plot.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _arms(figure_class: Any, found: Views) -> Any:
    metrics = list(dict.fromkeys(bar.metric for bar in found.bars))
    arms = list(found.looks)
    figure = figure_class(figsize=(3.4 * len(metrics), 0.34 * len(arms) + 1.2), layout="constrained")
    for place, metric in enumerate(metrics, 1):
        plot = figure.add_subplot(1, len(metrics), place)
        for bar in found.bars:
            if bar.metric == metric:
                look = found.looks[bar.arm]
                plot.errorbar([bar.mean], [arms.index(bar.arm)], xerr=[bar.sd or 0.0], fmt=MARKERS[look.shape],
                              color=COLOURS[look.slot])  # fmt: skip
        plot.set_yticks(range(len(arms)), [plain_text(arm) for arm in arms] if place == 1 else [""] * len(arms))
        plot.set_ylim(len(arms) - 0.5, -0.5)
        plot.set_title(METRICS[metric].title, loc="left", fontsize=9)
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(axis="x", alpha=0.25)
    return figure


def _plot(figure_class: Any, across: str, up: str) -> tuple[Any, Any]:
    figure = figure_class(figsize=(7.4, 4.4), layout="constrained")
    plot = figure.add_subplot()
    plot.set_xlabel(across)
    plot.set_ylabel(up)
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(alpha=0.25)
    return figure, plot


def _dash(look: Look) -> Any:
    return (0, tuple(float(part) / 2 for part in look.dash.split())) if look.dash else "solid"


def _heat_numbers(found: Views) -> Iterable[Sequence[Any]]:
    yield ["arm", "order", "stage", "after", "task", "gain" if all(heat.gains for heat in found.heats) else "value"]
    for heat in found.heats:
        for stage, row in enumerate(heat.values, 1):
            for name, value in zip(heat.domains, row, strict=True):
                if value is not None:
                    yield [heat.arm, heat.order, stage, heat.domains[stage - 1], name, round(value, 6)]


def _frontier_numbers(points: Sequence[Point], what: str) -> Iterable[Sequence[Any]]:
    yield ["arm", "runs", f"a_{what}", "a_low", "a_high", f"o_{what}", "o_low", "o_high"]
    for one in points:
        yield [one.arm, one.runs, *(round(value, 6) for value in (one.a, *one.a_ends, one.o, *one.o_ends))]


def _stage_numbers(found: Views) -> Iterable[Sequence[Any]]:
    yield ["arm", "domains", "stage", "gain", "low", "high"]
    for path in found.paths:
        for stage, *values in path.points:
            yield [path.arm, path.kind, stage, *(round(value, 6) for value in values)]


def _arm_numbers(found: Views) -> Iterable[Sequence[Any]]:
    yield ["metric", "arm", "mean", "sd"]
    for bar in found.bars:
        yield [bar.metric, bar.arm, round(bar.mean, 6), "" if bar.sd is None else round(bar.sd, 6)]
