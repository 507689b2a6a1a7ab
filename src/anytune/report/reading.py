"""Reading a store for the page: its manifests, and what could not be read."""

from __future__ import annotations

from pathlib import Path

from anytune.errors import StoreError
from anytune.evaluate import Artefact
from anytune.store import Store


def read_store(store: str | Path) -> tuple[list[Artefact], list[str]]:
    """Every base and delta of a store folder, and a sentence for each artefact that is damaged.

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
    opened = Store(folder, create=False)
    found = [Artefact(entry.folder, entry.manifest) for entry in opened.find()]
    # the page travels: it names the artefact, and no path of the machine that made it
    problems = [
        f"{place.name}: {problem.splitlines()[0].replace(f'{folder}/', '')}" for place, problem in opened.problems()
    ]
    return found, problems
