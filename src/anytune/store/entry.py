"""One artefact on disk: its folder and what its manifest says, and the check that the files are still those."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from anytune.errors import StoreError
from anytune.manifests import Manifest, sha256_file
from anytune.store.names import is_inside

#: On a hub README.md is the page of the repository; an artefact's own README.md stands beside it under this name.
README, OWN_README = "README.md", "README.artefact.md"


@dataclass(frozen=True)
class Entry:
    """An artefact found in a store: ``folder`` and its ``manifest`` as it was when read."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The content id (64 hex digits)."""
        return self.manifest.id

    @property
    def name(self) -> str:
        """The plain name, not necessarily unique in a store."""
        return self.manifest.name

    @property
    def reference(self) -> str:
        """What to type to mean exactly this artefact: the name of its folder."""
        return self.folder.name

    def main_metric(self) -> str | None:
        """The metric of the task, or None for a base."""
        return self.manifest.task.metric if self.manifest.task else None

    def score(self, split: str = "validation", metric: str | None = None) -> float | None:
        """The score on a split (by default in the task's own metric), or None where there is none or it is NaN."""
        name = metric or self.main_metric()
        value = self.manifest.scores.get(split, {}).get(name) if name else None
        return None if value is None or math.isnan(value) else value

    def size(self) -> int:
        """Bytes on disk, the manifest included."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file() and not file.is_symlink())


def check_files(entry: Entry) -> None:
    """Check that every file of the manifest is there, unchanged, and inside the folder (reads all of it once).

    Raises:
        StoreError: naming the file: it is missing, truncated or changed, a link, or its name leads out of the folder.
    """
    for name, expected in entry.manifest.files.items():
        path = _safe_path(entry, stored_as(entry, name))
        if not path.is_file():
            raise _damaged(entry, f"{name} is missing from {entry.reference}")
        shortfall = truncation(path) if path.suffix == ".safetensors" else None
        if shortfall:
            raise _damaged(entry, f"{name} in {entry.reference} is truncated: {shortfall}")
        try:
            found = sha256_file(path)
        except OSError as problem:
            raise _damaged(entry, f"cannot read {name} in {entry.reference}: {problem.strerror or problem}") from None
        if found != expected:
            raise _damaged(
                entry,
                f"{name} in {entry.reference} is damaged: SHA-256 {found[:12]}... of {path.stat().st_size} bytes, "
                f"the manifest says {expected[:12]}...",
            )


def stored_as(entry: Entry, name: str) -> str:
    """The name of the file that holds ``name`` of the manifest: another one only for README.md of a hub's folder."""
    moved = name == README and OWN_README not in entry.manifest.files and (entry.folder / OWN_README).is_file()
    return OWN_README if moved else name


def missing_files(entry: Entry) -> list[str]:
    """Names of files that the manifest lists and the folder lacks, without reading any (a quick look)."""
    return [name for name in entry.manifest.files if not (is_inside(name) and (entry.folder / name).is_file())]


def truncation(path: Path) -> str | None:
    """``"120 of 400 bytes"`` for a safetensors file that is shorter than its own header says, else None.

    The format: 8 bytes of header length (little-endian), the header as JSON, then the tensors; ``data_offsets`` count
    from the end of the header.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or size < 8 + length:
                return f"{size} bytes, {8 + length if size >= 8 else 'more'} are needed for its header alone"
            header = json.loads(handle.read(length))
        ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None  # not a readable header: the hash decides
    return f"{size} of {expected} bytes" if size < expected else None


def _safe_path(entry: Entry, name: str) -> Path:
    path = entry.folder / name
    if not is_inside(name):
        raise StoreError(
            f"the manifest of {entry.reference} names a file outside its folder: {name!r}",
            why="Such a name could read or overwrite other files of this machine, so the artefact is not used.",
            fix=f"anytune store remove {entry.reference}   (and ask where it came from)",
        )
    if path.exists() and path.resolve() != entry.folder.resolve() / name:
        raise StoreError(
            f"{name} in {entry.reference} is a link",
            why="A link can lead out of the artefact, and does not travel with it.",
            fix=f"replace the link by a copy of the file: cp --remove-destination $(readlink -f {name}) {name}",
        )
    return path


def _damaged(entry: Entry, what: str) -> StoreError:
    return StoreError(
        what,
        why="Damaged weights would load and answer wrongly, so they are not used.",
        fix=f"copy the folder again from where it came from, or 'anytune store remove {entry.reference}' "
        "and run the command that made it once more",
    )
