"""The page's learning curves as PNG and SVG files, and each figure's numbers as CSV (extra: ``anytune[figures]``)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.errors import AnytuneError
from anytune.evaluate import Artefact, Row, compare, runs_of
from anytune.evaluate.curves import Axis
from anytune.manifests import write_atomic
from anytune.report.arms import Look, looks
from anytune.report.charts import Series, series_of

#: the light colours of ``assets/page.css`` by slot
COLOURS = ("#0b62b8", "#4d5561", "#b35300", "#9a2c86", "#00705f", "#7b6000", "#b3263e")
MARKERS = {
    "circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "P", "down": "v", "pentagon": "p",
}  # fmt: skip
AXES: tuple[Axis, ...] = ("steps", "seconds")


def write_figures(artefacts: Sequence[Artefact], folder: str | Path) -> list[Path]:
    """Write ``TASK-on-BASE-AXIS.png``, ``.svg`` and ``.csv`` for each task, base and axis that has curves.

    Returns:
        The files, in the order written.

    Raises:
        AnytuneError: matplotlib is not installed.
        StoreError: the folder cannot be written.
    """
    figure_class = matplotlib_figure()
    rows = compare(runs_of(artefacts))
    look = looks(row.arm for row in rows)
    cells: dict[tuple[tuple[str, str], str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.task_key, row.base_key), []).append(row)
    written: list[Path] = []
    names: set[str] = set()
    for cell in cells.values():
        stem = _free_name(f"{cell[0].task}-on-{cell[0].base}", names)
        for axis in AXES:
            series = series_of(cell, look, axis)
            if any(one.band for one in series):
                written += _write(figure_class, cell, series, axis, Path(folder) / f"{stem}-{axis}")
    return written


def matplotlib_figure() -> Any:
    """Matplotlib's Figure: used without pyplot, so no window system and no global state is touched."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AnytuneError(
            "matplotlib is not installed",
            why="PNG and SVG files of the figures are drawn by it; the HTML page does not need it.",
            fix='pip install "anytune[figures]"',
        ) from None
    return Figure


def _free_name(text: str, names: set[str]) -> str:
    """A plain file name no other figure has: task and base names may hold anything, a slash included."""
    plain = re.sub(r"[^\w.]+", "-", text).strip("-.")[:80] or "figure"
    name = next(name for name in (plain, *(f"{plain}-{n}" for n in range(2, 10_000))) if name not in names)
    names.add(name)
    return name


def _write(figure_class: Any, cell: Sequence[Row], series: Sequence[Series], axis: Axis, stem: Path) -> list[Path]:
    figure = figure_class(figsize=(6.4, 4.2), layout="constrained")
    plot = figure.add_subplot()
    for one in series:
        _draw(plot, one)
    target = next((row.target for row in cell if row.target is not None), None)
    if target is not None:
        plot.axhline(target, color=COLOURS[1], linewidth=0.8)
    plot.set_title(plain_text(f"{cell[0].task} on {cell[0].base}"), loc="left", fontsize=11, fontweight="bold")
    plot.set_xlabel(f"training {axis}")
    plot.set_ylabel(plain_text(f"validation {cell[0].metric}"))
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(axis="y", alpha=0.25)
    plot.legend(frameon=False, fontsize=9)
    written = save_figure(figure, stem)
    written.append(stem.with_name(f"{stem.name}.csv"))
    write_atomic(written[-1], numbers(series, axis).encode())
    return written


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Write ``STEM.png`` and ``STEM.svg``, without date and random ids: the same numbers give the same bytes."""
    from matplotlib import rc_context

    written = []
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "anytune"}):
            figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        written.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomic(written[-1], buffer.getvalue())
    return written


def plain_text(text: str) -> str:
    """Names are shown as they are: a dollar sign in one must not start a formula."""
    return text.replace("$", r"\$")


def _draw(plot: Any, series: Series) -> None:
    look: Look = series.look
    colour, shape = COLOURS[look.slot], MARKERS[look.shape]
    label = plain_text(series.label)
    if series.band is None:
        plot.axhline(series.level, color=colour, linestyle=":", linewidth=1.5)
        plot.plot([0], [series.level], marker=shape, color=colour, linestyle=":", label=label)
        return
    band = series.band
    dash = (0, tuple(float(part) / 2 for part in look.dash.split())) if look.dash else "solid"
    every = max(1, (len(band.x) - 1) // 4)
    plot.plot(band.x, band.mean, color=colour, linestyle=dash, marker=shape, markevery=every, label=label)
    plot.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)


def numbers(series: Sequence[Series], axis: Axis) -> str:
    """The figure's numbers as CSV: arm, steps or seconds, mean, low and high over seeds, number of seeds."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["arm", axis, "mean", "low", "high", "seeds"])
    for one in series:
        if one.band is None:
            low, high = one.ends or (one.level, one.level)
            table.writerow([one.label, 0, one.level, low, high, one.seeds])
            continue
        for x, mean, low, high in zip(one.band.x, one.band.mean, one.band.low, one.band.high, strict=True):
            table.writerow([one.label, *(round(float(value), 6) for value in (x, mean, low, high)), one.seeds])
    return out.getvalue()
