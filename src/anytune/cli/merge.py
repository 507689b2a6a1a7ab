"""``anytune merge``: base and delta as one plain model folder (:func:`anytune.jobs.load.merge`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anytune.cli import options


def merge(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The delta: name, id or folder.")],
    out: Annotated[str | None, typer.Option(help="The folder to write (default: DELTA-merged).")] = None,
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
) -> None:
    """Write base and delta as one model folder.

    Example: anytune merge reviews-lora-bert-tiny --out reviews-model
    """
    from anytune.jobs.load import merge as job

    print(job(delta, out or f"{Path(delta).name}-merged", store=store, base=base))
