"""``anytune compare``: the tables of a comparison once more (:func:`anytune.jobs.arms.compared`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options, show


def compare(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The 'out' folder of a comparison.")],
    tables: Annotated[bool, typer.Option("--tables", help="Print all tables, not their summary alone.")] = False,
    json: options.Json = False,
) -> None:
    """Make the tables of a comparison again.

    They are computed from its runs.jsonl alone. 'anytune run RECIPE' makes a comparison, by a recipe of job: compare.

    Example: anytune compare stability/reviews
    """
    from anytune.jobs.arms import TABLES_NAME, compared

    found = compared(folder)
    if json:
        from anytune.jobs.arms import record

        show.print_json(record(found))
        return
    if tables:
        show.say((found.folder / TABLES_NAME).read_text(encoding="utf-8"))
    show.say(str(found))
