"""Which artefacts are meant: filters, the best one, one by its reference, and who was made from whom.

Pure functions on lists of entries; ``Store`` reads the folders and calls them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anytune.errors import StoreError
from anytune.manifests import BaseIdentity, Manifest
from anytune.store.entry import Entry
from anytune.store.names import slug

#: Scores of bases of which less is better (those of tasks stand in ``metrics.METRICS``).
LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
#: Fewer digits of a hash are no reference: too easily a word or another artefact's.
PREFIX_LENGTH = 4


@dataclass(frozen=True)
class Wanted:
    """The filters of ``Store.find``; None (or no tags) asks for nothing."""

    task: str | None = None
    base: str | BaseIdentity | None = None
    method: str | None = None
    seed: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    run: str | None = None
    form: str | None = None

    def fits(self, manifest: Manifest) -> bool:
        """Whether a manifest passes every filter."""
        task = manifest.task
        return (
            (self.task is None or (task is not None and self.task in {task.name, task.content} - {""}))
            and (self.base is None or same_base(manifest.base, self.base))
            and (self.method is None or any(same_method(used.name, self.method) for used in manifest.methods))
            and (self.seed is None or manifest.seed == self.seed)
            and (self.run is None or manifest.run == self.run)
            and (self.form is None or manifest.form == self.form)
            and all(manifest.tags.get(key) == value for key, value in self.tags.items())
        )


def same_base(identity: BaseIdentity, wanted: str | BaseIdentity) -> bool:
    """Whether an identity is meant by a name, a ref, a backbone hash prefix, or equals another in its backbone."""
    if isinstance(wanted, BaseIdentity):
        return identity.backbone == wanted.backbone
    return bool(wanted) and (
        wanted in {identity.name, identity.ref} or (is_prefix(wanted) and identity.backbone.startswith(wanted.lower()))
    )


def same_method(used: str, wanted: str) -> bool:
    """``tune/full`` is meant by ``tune/full`` and by ``full``; rooms are compared where both name one."""
    if "/" in used and "/" in wanted:
        return used == wanted
    return used.rpartition("/")[2] == wanted.rpartition("/")[2]


def is_prefix(text: str) -> bool:
    """Whether a text can be the beginning of a hash."""
    return len(text) >= PREFIX_LENGTH and all(letter in "0123456789abcdef" for letter in text.lower())


def best(entries: Iterable[Entry], split: str = "validation", metric: str | None = None) -> Entry:
    """The entry with the best score on ``split`` in ``metric`` (default: the task's own); the first of equals.

    Raises:
        StoreError: none has that score, or (with no ``metric``) the entries are of different metrics.
    """
    candidates = list(entries)
    metrics = {metric} if metric else {name for entry in candidates if (name := entry.main_metric())}
    if len(metrics) > 1:
        raise StoreError(
            f"cannot compare scores in {', '.join(sorted(metrics))}",
            why="The best of several metrics means nothing.",
            fix="name one metric, or choose among deltas of one task",
        )
    chosen = next(iter(metrics), None)
    scored = [(value, entry) for entry in candidates if (value := entry.score(split, chosen)) is not None]
    if not scored:
        have = sorted(
            {f"{part}/{name}" for entry in candidates for part, row in entry.manifest.scores.items() for name in row}
        )
        raise StoreError(
            f"none of {len(candidates)} artefact(s) has a score on {split}" + (f" in {chosen}" if chosen else ""),
            why=f"Known scores: {', '.join(have) or 'none'}.",
            fix="anytune evaluate",
        )
    return max(scored, key=lambda pair: goodness(chosen, pair[0]))[1]  # max keeps the first of equals


def goodness(metric: str | None, score: float) -> float:
    """A score as a number that is larger for the better: its negative for losses and errors."""
    from anytune.metrics import METRICS  # here: numpy takes longer to import than a store to list

    lower = metric in LOWER_IS_BETTER or (metric in METRICS and not METRICS[metric].higher_is_better)
    return -score if lower else score


def at_least(entry: Entry, least: float) -> bool:
    """Whether a delta's validation score in its own metric is ``least`` or better; False where it has none."""
    metric, score = entry.main_metric(), entry.score()
    return score is not None and goodness(metric, score) >= goodness(metric, least)


def matching(entries: Sequence[Entry], reference: str) -> list[Entry]:
    """The entries meant by a folder name, else a plain name, else an id prefix: the first of these that is any's."""
    exact = [entry for entry in entries if entry.reference == reference]
    named = (
        [entry for entry in entries if entry.name == reference or entry.name == slug(reference)] if reference else []
    )
    digits = [entry for entry in entries if is_prefix(reference) and entry.id.startswith(reference.lower())]
    return exact or named or digits


def ambiguous(reference: str, found: Sequence[Entry]) -> StoreError:
    """The error for a reference that means several artefacts: it lists what to type for each."""
    lines = [f"  {describe(entry)}" for entry in found[:12]]
    more = [f"  ... and {len(found) - 12} more"] if len(found) > 12 else []
    return StoreError(
        "\n".join([f"'{reference}' means {len(found)} artefacts:", *lines, *more]),
        why="Names may repeat (other seeds, other bases); ids do not.",
        fix=found[-1].reference,
    )


def describe(entry: Entry) -> str:
    """One line that tells entries of one name apart."""
    manifest = entry.manifest
    parts = [entry.reference, manifest.kind, f"base {manifest.base.short}", f"seed {manifest.seed}", manifest.created]
    return "   ".join(parts)


def missing(reference: str, entries: Sequence[Entry], folder: Path) -> StoreError:
    """The error for a reference that means nothing in the store: it suggests near names."""
    words = {word for entry in entries for word in (entry.name, entry.reference)}
    near = difflib.get_close_matches(reference, sorted(words), n=3, cutoff=0.5)
    known = sorted({entry.name for entry in entries})
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    short = f"An id needs at least {PREFIX_LENGTH} digits. " if 0 < len(reference) < PREFIX_LENGTH else ""
    return StoreError(
        f"no artefact '{reference}' in the store {folder}",
        why=f"{short}Known: {shown or 'none, the store is empty'}.",
        fix=" or ".join(near) if near else "anytune store list",
    )


def base_of(manifest: Manifest, bases: Sequence[Entry]) -> Entry | None:
    """The base with the same backbone hash; of several the named parent, else the most alike, else the oldest."""
    if not manifest.base.backbone:
        return None
    named = {parent.id for parent in manifest.parents if parent.role == "base"}
    same = [entry for entry in bases if entry.manifest.base.backbone == manifest.base.backbone]
    return max(
        same,
        key=lambda entry: (
            entry.id in named,
            (entry.manifest.base.vocabulary == manifest.base.vocabulary)
            + (entry.manifest.base.config == manifest.base.config),
        ),
        default=None,
    )


def parents(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Named parents that are among ``entries``, and for a delta the base it belongs to; never itself."""
    by_id = {other.id: other for other in entries if other.id}
    found = {parent.id: by_id[parent.id] for parent in entry.manifest.parents if parent.id in by_id}
    if entry.manifest.kind == "delta" and not any(other.manifest.kind == "base" for other in found.values()):
        base = base_of(entry.manifest, [other for other in entries if other.manifest.kind == "base"])
        if base:
            found[base.id] = base
    return [other for identity, other in found.items() if identity != entry.id]


def children(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of which ``entry`` is a parent."""
    return [other for other in entries if any(parent.id == entry.id for parent in parents(other, entries))]


def lineage(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """All ancestors, breadth first, each once; a cycle (manifests edited by hand) ends where it closes."""
    seen, chain, queue = {entry.id}, [], [entry]
    while queue:
        for parent in parents(queue.pop(0), entries):
            if parent.id not in seen:
                seen.add(parent.id)
                chain.append(parent)
                queue.append(parent)
    return chain
