"""``anytune recycle-tables``: tables and figures of a recycling grid once more (:mod:`anytune.jobs.recycle_grid`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options, show


def recycle_tables(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The 'out' folder of a job: recycle-grid.")],
    tables: Annotated[bool, typer.Option("--tables", help="Print all tables, not their summary alone.")] = False,
    figures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Also each figure as PNG, SVG and CSV.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make the tables and figures of a grid of recycling again.

    They are computed from its lines alone. 'anytune run RECIPE' makes the grid, by a recipe of job: recycle-grid.

    Example: anytune recycle-tables evidence/recycle-tiny
    """
    from anytune.jobs.recycle_grid import record, recycled_again

    found = recycled_again(folder)
    if figures is not None:
        from anytune.report.recycle_figures import write_recycle_figures

        write_recycle_figures(found.lines, figures, found.upgrades, found.tasks)
    if json:
        show.print_json(record(found))
        return
    show.say(found.tables if tables else str(found))
