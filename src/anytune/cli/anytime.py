"""``anytune anytime``: the tables and figures of anytime matrices once more (:mod:`anytune.jobs.anytime`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options, show


def anytime(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The 'out' folder of a job: anytime.")],
    tables: Annotated[bool, typer.Option("--tables", help="Print all tables, not their summary alone.")] = False,
    figures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Also each figure as PNG, SVG and CSV.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make the tables of anytime matrices again.

    They are computed from its lines alone. 'anytune run RECIPE' makes the matrices, by a recipe of job: anytime.

    Example: anytune anytime evidence/stream
    """
    from anytune.jobs.anytime import anytime_again, record
    from anytune.jobs.arms import TABLES_NAME

    found = anytime_again(folder)
    if figures is not None:
        from anytune.report.anytime_figures import write_anytime_figures

        write_anytime_figures(found.lines, figures, found.stages)
    if json:
        show.print_json(record(found))
        return
    if tables:
        show.say((found.folder / TABLES_NAME).read_text(encoding="utf-8"))
    show.say(str(found))
