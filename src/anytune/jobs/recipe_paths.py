"""Which values of a recipe are files and folders, looked for beside it: what a recipe names goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Keys whose values may name files; of these, ``PLACES_TO_WRITE`` always do.
FILE_KEYS = (
    "base",
    "old_base",
    "delta",
    "start_from",
    "projection",
    "unlabelled",
    "sources",
    "teachers",
    "targets",
    "task",
    "tasks",
    "score_on",
    "probe_on",
    "domains",
    "domain",
    "watch",
    "apart_from",
    "anytime",
    "transfer",
    "validation",
    "test",
    "source",
)
PLACES_TO_WRITE = ("store", "out", "figures", "log_dir", "anytime", "transfer")
#: Keys that name files in one job alone, and a key of :data:`FILE_KEYS` or ``PLACES_TO_WRITE`` that is read alike.
#: ``recycle`` in an arm of a grid names a method, and ``old`` and ``new`` of a grid are numbers of rows.
ALIKE = {
    "report": {"recycle": "anytime"},
    "upgrade": {"old": "base", "new": "base", "deltas": "sources"},
}
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")


def beside(values: Any, folder: Path) -> Any:
    """The recipe with the files it names looked for in ``folder``; names that are no files there stay."""
    if isinstance(values, list):
        return [beside(value, folder) for value in values]
    if not isinstance(values, Mapping):
        return values
    # what stands beside `jobs` are defaults of all of them
    jobs = values["jobs"] if isinstance(values.get("jobs"), list) else [values]
    kinds = [job.get("job") for job in jobs if isinstance(job, Mapping)]
    alike = {key: other for kind in kinds if isinstance(kind, str) for key, other in ALIKE.get(kind, {}).items()}
    return {key: _beside_value(str(alike.get(key, key)), value, folder) for key, value in values.items()}


def _beside_value(key: str, value: Any, folder: Path) -> Any:
    if isinstance(value, list) and key == "unlabelled":
        return value  # the texts themselves
    if isinstance(value, Mapping) and key == "tasks":  # of an upgrade: whose data they are -> where they are
        return {name: _beside_value("task", inner, folder) for name, inner in value.items()}
    if isinstance(value, list) and key in FILE_KEYS:
        return [_beside_value(key, inner, folder) for inner in value]
    if not isinstance(value, str):
        return beside(value, folder)
    if key not in (*FILE_KEYS, *PLACES_TO_WRITE) or not value or value.startswith("sample:"):
        return value
    there = folder / Path(value).expanduser()
    named_as_file = value.startswith((".", "~")) or value.lower().endswith(DATA_SUFFIXES)
    return str(there) if key in PLACES_TO_WRITE or named_as_file or there.exists() else value
