"""Reading a store for the page: its manifests, and what could not be read."""

from __future__ import annotations

from pathlib import Path

from anytune.errors import StoreError
from anytune.evaluate import Artefact
from anytune.manifests import MANIFEST_NAME, PARTIAL_PREFIX, read_manifest


def read_store(store: str | Path) -> tuple[list[Artefact], list[str]]:
    """Every base and delta of a store folder, and a sentence for each manifest that could not be read.

    Only manifests are read, never weights, so a page is made from a store of any size in moments.

    Raises:
        StoreError: the folder does not exist.
    """
    folder = Path(store)
    if not folder.is_dir():
        raise StoreError(
            f"there is no store at {folder}",
            why="A report is made from the manifests in a store folder.",
            fix="anytune report --store FOLDER   (anytune demo makes one in anytune-demo)",
        )
    found, problems = [], []
    for kind in ("bases", "deltas"):
        for place in sorted((folder / kind).glob("*")):
            if place.name.startswith(PARTIAL_PREFIX) or not (place / MANIFEST_NAME).is_file():
                continue
            try:
                found.append(Artefact(place, read_manifest(place)))
            except StoreError as problem:
                # the message names the whole path; the page travels, so it shows the place inside the store
                problems.append(problem.what.replace(str(folder), folder.name))
    return found, problems
