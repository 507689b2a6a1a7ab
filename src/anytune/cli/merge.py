"""``anytune merge``: base and delta as one plain model folder (:func:`anytune.jobs.load.merge`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anytune.cli import forecasts, options


def merge(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The delta: name, id or folder.")],
    out: Annotated[str | None, typer.Option(help="The folder to write (default: DELTA-merged).")] = None,
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Write base and delta as one model folder.

    Example: anytune merge reviews-lora-bert-tiny --out reviews-model
    """
    final = out or f"{Path(delta).name}-merged"
    if dry_run:
        from anytune.jobs.use_forecasts import forecast_writing

        forecasts.print_forecasts([forecast_writing("merge", delta, final, store=store, base=base)])
        return
    from anytune.jobs.load import merge as job

    print(job(delta, final, store=store, base=base))
