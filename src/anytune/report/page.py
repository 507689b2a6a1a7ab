"""One self-contained HTML page from a store alone: no network to make it, none to look at it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from anytune import __version__
from anytune.evaluate import Artefact, Row, Run, compare, held_out, runs_of
from anytune.evaluate.transfer_arms import grid_of
from anytune.evaluate.verdicts import summaries, told
from anytune.manifests import write_atomic
from anytune.report import panels, words
from anytune.report.anytime_panel import Matrices, panel
from anytune.report.arms import MEANING, looks, swatch
from anytune.report.charts import Chart, chart
from anytune.report.lineage import Node, lineage, nodes_of
from anytune.report.reading import read_store
from anytune.report.recycle_grid_panel import RecycleGrid
from anytune.report.recycle_grid_panel import panel as recycle_panel
from anytune.report.transfer_charts import write_transfer_figures
from anytune.report.transfer_panel import Grids
from anytune.report.transfer_panel import panel as transfer_panel

#: charts of a base shown at once; the others are folded away, and everything is in the table
CHARTS_SHOWN = 12
#: ... where no arms are compared, so that the charts say little
ALONE_SHOWN = 3
#: sentences shown at once
VERDICTS_SHOWN = 12


def build(
    store: str | Path, out: str | Path = "report.html", *, figures: str | Path | None = None,
    anytime: Sequence[Matrices] = (), transfer: Sequence[Grids] = (), recycle: Sequence[RecycleGrid] = (),
) -> Path:  # fmt: skip
    """Write the page of a store, and (with ``figures``) every figure as PNG, SVG and CSV.

    Args:
        store: the store's folder; only its manifests are read.
        out: the HTML file; it appears whole or not at all. A folder gets a ``report.html``.
        figures: a folder for the figures' files, or None for the page alone.
        anytime: anytime matrices to show as well; their figures go into folders named after them.
        transfer: grids of transfers, likewise.
        recycle: grids of recycling, likewise.

    Returns:
        Path of the page.

    Raises:
        StoreError: there is no such folder, or the page cannot be written.
        AnytuneError: ``figures`` is given and matplotlib is not installed.
    """
    artefacts, problems = read_store(store)
    path = Path(out)
    if path.is_dir():
        path = path / "report.html"
    if figures is not None:
        from anytune.report.figures import write_figures

        write_figures(artefacts, figures)
        for one in anytime:
            from anytune.report.anytime_figures import write_anytime_figures

            write_anytime_figures(one.lines, Path(figures) / one.name)
        for grid in transfer:
            write_transfer_figures(grid_of(grid.lines), Path(figures) / grid.name)
        for own in recycle:
            from anytune.report.recycle_figures import write_recycle_figures

            write_recycle_figures(own.lines, Path(figures) / own.name, own.upgrades, own.tasks)
    name = Path(store).resolve().name
    write_atomic(
        path, page(artefacts, problems, name=name, anytime=anytime, transfer=transfer, recycle=recycle).encode()
    )
    return path


def page(
    artefacts: Sequence[Artefact], problems: Sequence[str] = (), *, name: str = "store",
    anytime: Sequence[Matrices] = (), transfer: Sequence[Grids] = (), recycle: Sequence[RecycleGrid] = (),
) -> str:  # fmt: skip
    """The page as text. Pure: the same manifests give the same page."""
    artefacts = sorted(artefacts, key=lambda artefact: (artefact.manifest.created, artefact.manifest.id))
    runs = runs_of(artefacts)
    rows = compare(runs)
    look = looks(run.arm for run in runs)
    nodes = nodes_of(artefacts, runs)
    style, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        name=name,
        headline=headline(artefacts, runs),
        created=max((artefact.manifest.created for artefact in artefacts), default="")[:16].replace("T", " "),
        problems=problems,
        summaries=summaries(rows),
        sentences=told(rows),
        verdicts_shown=VERDICTS_SHOWN,
        overview=panels.overview(rows, look),
        anytime=[panel(one) for one in anytime],
        transfer=[transfer_panel(one) for one in transfer],
        recycle=[recycle_panel(one) for one in recycle],
        lineage=lineage(artefacts, runs, look),
        arms=[{"name": arm, "swatch": swatch(one), "meaning": MEANING.get(arm, "")} for arm, one in look.items()],
        charts=charts_of(rows, nodes),
        table=panels.table(rows, look),
        choices=_choices(rows),
        losses=panels.losses(held_out(artefacts)),
        measured=measured(artefacts, rows),
        version=__version__,
    )


def _asset(name: str) -> str:
    return resources.files("anytune.report").joinpath("assets", name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class ChartGroup:
    """The charts of one base: what stands above them, the charts shown at once, and those folded away."""

    base: str
    note: str
    charts: list[Chart]
    more: list[Chart]


def charts_of(rows: Sequence[Row], nodes: Sequence[Node]) -> list[ChartGroup]:
    """Charts by base, a chart for each task that compares arms there; where nothing is compared, all with curves."""
    look = looks(row.arm for row in rows)
    cells: dict[tuple[str, tuple[str, str]], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.base_key, row.task_key), []).append(row)
    comparing = {key: cell for key, cell in cells.items() if len({row.label for row in cell}) > 1}
    groups = []
    for node in nodes:
        chosen = [cell for (base, _), cell in (comparing or cells).items() if base == node.key]
        made = [one for one in (chart(f"{cell[0].task} on {cell[0].base}", cell, look) for cell in chosen) if one]
        if made:
            note = ", ".join(f"{name} ({words.short_count(tokens)} tokens)" for name, tokens in node.domains)
            shown = CHARTS_SHOWN if comparing else ALONE_SHOWN
            groups.append(ChartGroup(node.name, note, made[:shown], made[shown:]))
    return groups


def headline(artefacts: Sequence[Artefact], runs: Sequence[Run]) -> str:
    """What this is, in one sentence with numbers."""
    if not runs:
        bases = sum(artefact.manifest.kind == "base" for artefact in artefacts)
        holds = f"This store holds {_plural(bases, 'base')}" if bases else "This store is empty"
        return f"{holds}: no tuned deltas yet"
    recycled = [run for run in runs if run.outdated]
    steps = sum(run.steps for run in runs)
    seconds = sum(run.seconds for run in runs)
    tasks = len({run.task_key for run in runs})
    upgrades = sum(node.parent is not None for node in nodes_of(artefacts, runs))
    text = f"{_plural(len(runs), 'run')} of {_plural(tasks, 'task')}"
    if recycled:
        text += f", {len(recycled):,} of them recycled"
        text += f" across {_plural(upgrades, 'upgrade')} of the base" if upgrades else ""
    return f"{text}: {steps:,} training steps in {words.duration(seconds)}"


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _choices(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {
        "task": list(dict.fromkeys(row.task for row in rows)),
        "base": list(dict.fromkeys(row.base for row in rows)),
        "arm": list(dict.fromkeys(row.arm for row in rows)),
    }


def measured(artefacts: Sequence[Artefact], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """How it was measured: (what, words) pairs for the foot of the page."""
    environments = [artefact.manifest.environment for artefact in artefacts]
    versions: dict[str, set[str]] = {}
    for environment in environments:
        for package, version in environment.versions.items():
            versions.setdefault(package, set()).add(version)
    overlap = sum(sum(d.overlap.values()) for artefact in artefacts for d in artefact.manifest.domains)
    stated = any(d.overlap for artefact in artefacts for d in artefact.manifest.domains)
    seeds = sorted({run.seed for row in rows for run in row.runs})
    listed = [
        ("Splits", "weights were selected on validation and scored on test; targets and curves are validation scores"),
        ("Metrics", ", ".join(sorted({row.metric for row in rows})) or words.NOTHING),
        ("Seeds", ", ".join(map(str, seeds)) or words.NOTHING),
        ("Threads", _values(environment.threads for environment in environments if environment.threads)),
        ("Precision", _values(environment.precision for environment in environments)),
        ("Device", _values(environment.device for environment in environments)),
        ("Versions", ", ".join(f"{key} {' / '.join(sorted(versions[key]))}" for key in sorted(versions)) or "–"),
    ]  # fmt: skip
    if stated:
        listed.insert(1, ("Overlap", f"{overlap:,} texts shared between pre-training domains and held-out task data"))
    return listed


def _values(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values})) or words.NOTHING
