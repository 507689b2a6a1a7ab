"""Make the page of a store: ``anytune report``."""

from __future__ import annotations

from pathlib import Path

from anytune.jobs.opening import open_store
from anytune.jobs.tune import Source
from anytune.report import build
from anytune.store import Store


def report(
    store: Store | Source | None = None, out: str | Path = "report.html", *, figures: str | Path | None = None
) -> Path:
    """One self-contained HTML page from a store alone: lineage, curves, a table with the recipe behind each number.

    Args:
        out: the page; written over if it exists.
        figures: a folder for each figure as PNG, SVG and CSV (needs ``anytune[figures]``).

    Raises:
        StoreError: the store is missing or empty.
    """
    place = open_store(store, create=False)
    return build(place.folder, out, figures=figures)
