"""Heat-maps of how tasks lie to each other, and of what each source gave each target."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from anytune.evaluate.transfer_arms import Grid, truth
from anytune.manifests import write_atomic
from anytune.report.figures import matplotlib_figure, plain_text, save_figure
from anytune.report.svg import tag
from anytune.store.names import slug

CELL, FONT, LETTER = 30, 11, 6.2
#: In cells of a larger map numbers would not be legible.
MOST_WITH_NUMBERS = 24
#: The page's style sheet brings its own colours; a picture on its own has these.
STYLE = (
    ".heat{font:11px system-ui,sans-serif}.heat text{fill:#1a1f26}.heat .up{fill:#0b62b8}.heat .down{fill:#b35300}"
    ".heat .none{fill:none;stroke:#c8ced6}.heat .own{fill:none;stroke:#1a1f26;stroke-width:1.6}"
)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: np.ndarray, label: str, *, middle: float = 0.0,
    marked: Sequence[tuple[int, int]] = (), alone: bool = False,
) -> Markup:  # fmt: skip
    """A table of numbers as coloured cells: above ``middle`` in one colour, below in the other.

    Args:
        rows: names of the rows.
        columns: names of the columns.
        values: [rows, columns], NaN for an empty cell.
        label: what it shows.
        marked: cells with a frame.
        alone: with the colours in it, for a file of its own.
    """
    left = 12 + LETTER * max((len(_short(name)) for name in rows), default=0)
    top = 12 + LETTER * max((len(_short(name)) for name in columns), default=0)
    width, height = left + CELL * len(columns) + 6, top + CELL * len(rows) + 6
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite - middle).max()) if finite.size else 0.0
    numbers = len(columns) <= MOST_WITH_NUMBERS
    parts: list[Markup] = []
    for place, name in enumerate(columns):
        x = left + (place + 0.5) * CELL + 4
        parts.append(tag("text", _short(name), x=0, y=0, class_="head",
                         transform=f"translate({x:.1f} {top - 6:.1f}) rotate(-90)"))  # fmt: skip
    for place, name in enumerate(rows):
        parts.append(
            tag("text", _short(name), x=left - 6, y=top + place * CELL + 19, text_anchor="end", class_="head")
        )
        for column, value in enumerate(values[place]):
            box = {"x": left + column * CELL + 1.0, "y": top + place * CELL + 1.0, "width": CELL - 2,
                   "height": CELL - 2, "rx": 2}  # fmt: skip
            if not math.isfinite(value):
                parts.append(tag("rect", **box, class_="none"))
                continue
            strength = abs(value - middle) / largest if largest else 0.0
            said = tag("title", f"{name}, {columns[column]}: {value:.3g}")
            kind = "up" if value >= middle else "down"
            parts.append(tag("rect", said, **box, class_=kind, fill_opacity=f"{0.05 + 0.6 * strength:.3f}"))
            if (place, column) in marked:
                parts.append(tag("rect", **box, class_="own"))
            if numbers:
                parts.append(tag("text", _number(value), x=left + (column + 0.5) * CELL, y=top + place * CELL + 19,
                                 text_anchor="middle", font_size=10))  # fmt: skip
    inside = [tag("style", Markup(STYLE))] if alone else []
    attributes = {"xmlns": "http://www.w3.org/2000/svg"} if alone else {}
    return tag("svg", *inside, tag("title", label), *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img",
               aria_label=label, class_="heat", **attributes)  # fmt: skip


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _number(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return text.replace("-0.00", "0.00").replace("0.", ".", 1) if abs(value) < 1 else text


def write_matrix(found: Any, folder: Path, *, figures: bool = False) -> list[Path]:
    """Write ``METRIC.csv`` and ``METRIC.svg`` of a matrix of tasks; with ``figures`` ``METRIC-figure.png`` and SVG.

    Args:
        found: a :class:`anytune.jobs.transfer_matrix.Matrix`.

    Raises:
        AnytuneError: ``figures``, and matplotlib is not installed.
        StoreError: the folder cannot be written.
    """
    order = list(found.order)
    names = [found.tasks[place] for place in order]
    values = np.asarray(found.values)[np.ix_(order, order)]
    label = f"{found.metric} of {len(names)} tasks on {found.base}"
    written = [folder / f"{found.metric}.csv", folder / f"{found.metric}.svg"]
    write_atomic(written[0], as_csv(names, names, values).encode())
    picture = heat_map(names, names, values, label, middle=middle_of(values), alone=True)
    write_atomic(written[1], str(picture).encode())
    if figures:
        written += save_figure(
            _figure(names, names, values, label, middle_of(values)), folder / f"{found.metric}-figure"
        )
    return written


def middle_of(values: np.ndarray) -> float:
    """Where the colours part: 0 where there are values on both sides of it, else the median off the diagonal."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() < 0 < finite.max():
        return 0.0
    off = values[np.eye(*values.shape) == 0]
    off = off[np.isfinite(off)]
    return float(np.median(off)) if off.size else 0.0


def as_csv(rows: Sequence[str], columns: Sequence[str], values: np.ndarray) -> str:
    """A table with names at its sides; an empty cell is empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["", *columns])
    for name, row in zip(rows, values, strict=True):
        table.writerow([name, *("" if not math.isfinite(value) else repr(round(float(value), 6)) for value in row)])
    return out.getvalue()


def gain_maps(grid: Grid) -> list[tuple[str, Markup]]:
    """For each arm that was run from several sources a map of its gains, sources by targets; same texts are framed."""
    made = []
    for arm in grid.runs:
        names, targets, gains = truth(grid, arm, "gain")
        if np.isfinite(gains).sum() > len(targets):
            kept = [place for place, row in enumerate(gains) if np.isfinite(row).any()]
            rows = [names[place] for place in kept]
            marked = _same_texts(grid, rows, targets)
            label = f"{arm}: gain over {grid.control} of each source (row) on each target (column)"
            made.append((arm, heat_map(rows, targets, gains[kept], label, marked=marked)))
    return made


def _same_texts(grid: Grid, sources: Sequence[str], targets: Sequence[str]) -> list[tuple[int, int]]:
    return [(row, column) for row, source in enumerate(sources) for column, target in enumerate(targets)
            if (source, target) in grid.families]  # fmt: skip


def write_transfer_figures(grid: Grid, folder: str | Path) -> list[Path]:
    """Write the gains of each arm's pairs as PNG, SVG and CSV, ``gains-ARM``; same texts are framed.

    Raises:
        AnytuneError: matplotlib is not installed.
        StoreError: the folder cannot be written.
    """
    written: list[Path] = []
    for number, arm in enumerate(grid.runs):
        names, targets, gains = truth(grid, arm, "gain")
        if np.isfinite(gains).sum() <= len(targets):
            continue
        name = f"gains-{slug(arm)}"
        stem = Path(folder) / (f"{name}-{number}" if any(one.stem == name for one in written) else name)
        label = f"{arm}: gain over {grid.control}"
        written += save_figure(_figure(names, targets, gains, label, 0.0, _same_texts(grid, names, targets)), stem)
        written.append(stem.with_name(f"{stem.name}.csv"))
        write_atomic(written[-1], as_csv(names, targets, gains).encode())
    return written


def _figure(
    rows: Sequence[str], columns: Sequence[str], values: np.ndarray, title: str, middle: float,
    marked: Sequence[tuple[int, int]] = (),
) -> Any:  # fmt: skip
    figure = matplotlib_figure()(figsize=(0.42 * len(columns) + 2.4, 0.34 * len(rows) + 1.8), layout="constrained")
    plot = figure.add_subplot()
    finite = values[np.isfinite(values)]
    reach = (float(np.abs(finite - middle).max()) if finite.size else 0.0) or 1.0
    plot.imshow(values, cmap="RdBu", vmin=middle - reach, vmax=middle + reach, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if math.isfinite(value):
                ink = "white" if abs(value - middle) > 0.7 * reach else "black"
                frame = {"fill": False, "linewidth": 0.8, "edgecolor": ink} if (row, column) in marked else None
                plot.text(column, row, _number(float(value)), ha="center", va="center", fontsize=6, color=ink,
                          bbox=frame)  # fmt: skip
    plot.set_xticks(range(len(columns)), [plain_text(name) for name in columns], rotation=60, ha="right", fontsize=7)
    plot.set_yticks(range(len(rows)), [plain_text(name) for name in rows], fontsize=7)
    plot.set_title(plain_text(title), loc="left", fontsize=9)
    return figure
