"""``anytune export``: a delta for other tools (:func:`anytune.jobs.load.export`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anytune.cli import forecasts, options


def export(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The delta: name, id or folder.")],
    out: Annotated[str | None, typer.Option(help="The folder to write (default: DELTA-exported).")] = None,
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Also the held-out rows beside it (texts of your task).")
    ] = False,
    dry_run: options.DryRun = False,
) -> None:
    """Write a delta for other tools.

    An adapter becomes a plain PEFT folder, a full difference a merged model.

    Example: anytune export reviews-lora-bert-tiny --out reviews-adapter
    """
    final = out or f"{Path(delta).name}-exported"
    if dry_run:
        from anytune.jobs.use_forecasts import forecast_writing

        forecasts.print_forecasts([forecast_writing("export", delta, final, store=store, base=base)])
        return
    from anytune.jobs.load import export as job

    print(job(delta, final, store=store, base=base, sample=sample))
