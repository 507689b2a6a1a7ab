"""Make the page of a store: ``anytune report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytune.jobs.anytime import read_anytime
from anytune.jobs.opening import open_store
from anytune.jobs.recycle_grid import read_recycled
from anytune.jobs.transfer_grid import read_transfers
from anytune.jobs.tune import Source
from anytune.report import build
from anytune.report.anytime_panel import Matrices
from anytune.report.recycle_grid_panel import RecycleGrid
from anytune.report.transfer_panel import Grids
from anytune.store import Store


def report(
    store: Store | Source | None = None, out: str | Path = "report.html", *, figures: str | Path | None = None,
    anytime: Source | Sequence[Source] = (), transfer: Source | Sequence[Source] = (),
    recycle: Source | Sequence[Source] = (),
) -> Path:  # fmt: skip
    """One self-contained HTML page from a store alone: lineage, curves, a table with the recipe behind each number.

    Args:
        out: the page; written over if it exists.
        figures: a folder for each figure as PNG, SVG and CSV (needs ``anytune[figures]``).
        anytime: folders of anytime matrices (``out`` of :func:`anytune.jobs.anytime.anytime_matrix`) to show as well.
        transfer: folders of grids of transfers (``out`` of a ``job: transfer``), likewise.
        recycle: folders of grids of recycling (``out`` of a ``job: recycle-grid``), likewise.

    Raises:
        StoreError: the store is missing or empty.
        DataError: a folder of matrices or grids is missing or damaged.
    """
    place = open_store(store, create=False)
    folders = [anytime] if isinstance(anytime, str | Path) else list(anytime)
    found = [read_anytime(folder) for folder in folders]
    shown = [Matrices(one.folder.resolve().name, one.lines, one.stages) for one in found]
    given = [transfer] if isinstance(transfer, str | Path) else list(transfer)
    grids = [Grids(one.folder.resolve().name, one.lines, one.rankings) for one in map(read_transfers, given)]
    named = [recycle] if isinstance(recycle, str | Path) else list(recycle)
    recycled = [RecycleGrid(one.folder.resolve().name, one.lines, one.upgrades, one.paths, one.tasks)
                for one in map(read_recycled, named)]  # fmt: skip
    return build(place.folder, out, figures=figures, anytime=shown, transfer=grids, recycle=recycled)
