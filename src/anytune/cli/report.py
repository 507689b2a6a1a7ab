"""``anytune report``: the page of a store (:func:`anytune.jobs.report.report`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options


def report(
    store: options.Store = None,
    out: Annotated[str, typer.Option(help="The page; written over if it exists.")] = "report.html",
    figures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Also each figure as PNG, SVG and CSV.")
    ] = None,
    anytime: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Also the matrices of a job: anytime, by their folder; may be repeated."),
    ] = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Also the grid of a job: transfer, by its folder; may be repeated."),
    ] = None,
    recycle: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Also the grid of a job: recycle-grid, by its folder; may be repeated."),
    ] = None,
) -> None:
    """Make one HTML page of a store.

    It shows lineage, curves, and the recipe behind each number.

    Example: anytune report --store anytune-store --out report.html
    """
    from anytune.jobs.report import report as job

    print(job(store, out, figures=figures, anytime=anytime or [], transfer=transfer or [], recycle=recycle or []))
