"""A store in words: rows for ``anytune store list``, and a lineage as an indented tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from anytune.store import search
from anytune.store.entry import Entry
from anytune.store.store import Store


def rows(entries: Iterable[Entry], split: str = "validation") -> list[dict[str, Any]]:
    """One plain dict per artefact, JSON-able, in the order given.

    Keys: ``name``, ``id`` (12 digits), ``kind``, ``task``, ``base``, ``method`` (several joined by " + "), ``form``,
    ``seed``, ``metric``, ``score`` (in ``metric`` on ``split``; None where there is none), ``bytes`` on disk,
    ``created``, ``reference`` (what to type).
    """
    return [_row(entry, split) for entry in entries]


def _row(entry: Entry, split: str) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": manifest.name,
        "id": manifest.id[:12],
        "kind": manifest.kind,
        "task": manifest.task.name if manifest.task else None,
        "base": manifest.base.short,
        "method": " + ".join(method.name for method in manifest.methods) or None,
        "form": manifest.form,
        "seed": manifest.seed,
        "metric": entry.main_metric(),
        "score": entry.score(split),
        "bytes": entry.size(),
        "created": manifest.created,
        "reference": entry.reference,
    }


def lineage_tree(store: Store, entry: Entry) -> str:
    """An artefact with its parents above all the way up, as text indented by generation::

        imdb-v1-0a1b2c3d4e5f   delta of hpo by initialize
          base: v1-11aa22bb33cc   base
            base: v0-99ff88ee77dd   base
          delta: imdb-v0-123412341234   delta of hpo by full

    A parent that this store lacks is named as its child knows it; one that was shown before is not unfolded again, so
    a cycle ends.
    """
    entries = store.find()
    lines: list[str] = []
    _branch(entry, entries, "", 0, set(), lines)
    return "\n".join(lines)


def _branch(entry: Entry, entries: Sequence[Entry], role: str, depth: int, seen: set[str], lines: list[str]) -> None:
    key = entry.id or entry.reference
    lines.append(f"{'  ' * depth}{role}{_title(entry)}{' (see above)' if key in seen else ''}")
    if key in seen:
        return
    seen.add(key)
    known = {parent.id: parent for parent in search.parents(entry, entries)}
    named = {parent.id for parent in entry.manifest.parents}
    for parent in entry.manifest.parents:
        if parent.id in known:
            _branch(known[parent.id], entries, f"{parent.role}: ", depth + 1, seen, lines)
        elif parent.id != entry.id:
            label = f"{parent.name or parent.role} ({parent.id[:12]})"
            lines.append(f"{'  ' * (depth + 1)}{parent.role}: {label}, not in this store")
    for parent_id, parent_entry in known.items():
        if parent_id not in named:
            _branch(parent_entry, entries, "base: ", depth + 1, seen, lines)
    has_base = any(parent.role == "base" for parent in entry.manifest.parents) or any(
        other.manifest.kind == "base" for other in known.values()
    )
    if entry.manifest.kind == "delta" and not has_base:
        lines.append(f"{'  ' * (depth + 1)}base: {entry.manifest.base.short}, not in this store")


def _title(entry: Entry) -> str:
    manifest = entry.manifest
    methods = " + ".join(method.name for method in manifest.methods)
    task = f" of {manifest.task.name}" if manifest.task else ""
    domains = f" after {', '.join(domain.name for domain in manifest.domains)}" if manifest.domains else ""
    return f"{entry.reference}   {manifest.kind}{task}{domains}{f' by {methods}' if methods else ''}"
