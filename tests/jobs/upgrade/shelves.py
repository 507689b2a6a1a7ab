"""What tests of an upgrade look at in a store."""

from __future__ import annotations

import json
from pathlib import Path

from anytune.store import Store


def lines(result):
    return [json.loads(line) for line in result.journal.read_text().splitlines()]


def content(store: Path) -> dict[str, dict[str, str]]:
    """Name of each upgraded delta -> hashes of its files, which are its bits."""
    return {entry.reference: entry.manifest.files for entry in Store(store).find("delta")
            if entry.manifest.decision is not None}  # fmt: skip


def task_file(store: Path) -> Path:
    return store.parent / "things.csv"


def full_of(store: Path) -> str:
    return next(entry.reference for entry in Store(store).find("delta") if entry.manifest.form == "full")
