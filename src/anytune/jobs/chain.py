"""Carry a delta through several upgrades, one after the other: ``anytune recycle --via``.

Where nothing is trained, a full difference ends in the same bits whether it is carried straight to the last base or
from hop to hop. Methods that train gain from the way: each hop starts near a solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anytune.errors import StoreError, WrongBaseError
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import base_of_delta, open_base, open_delta, open_store
from anytune.jobs.recycle import recycle
from anytune.jobs.tune import Source
from anytune.manifests import Manifest
from anytune.models.base import Base
from anytune.store import Entry, Store

#: the word for "the bases between, as the store knows them"
PARENTS = "parents"


@unwritten
def recycle_chain(
    delta: Entry | Source,
    base: Base | Entry | Source,
    *,
    via: Literal["parents"] | Sequence[Base | Entry | Source] = "parents",
    store: Store | Source | None = None,
    old_base: Base | Entry | Source | None = None,
    seeds: Sequence[int] | None = None,
    keep: str = "weights",
    name: str | None = None,
    dry_run: bool = False,
    **options: Any,
) -> list[Entry]:
    """Carry ``delta`` over to ``base`` hop by hop, by one recycle method; every hop's result is stored.

    Args:
        delta: an outdated delta: name, id or folder.
        base: the last base.
        via: the bases between, first to last; "parents" finds them by what each base of the store was made from.
        old_base: the base the delta belongs to, if it is not found by itself.
        seeds: of the first hop; each of its results is carried on with its own seed.
        keep: of the last hop; the others must keep their weights.
        name: of the last hop's results.
        dry_run: make nothing; forecasts for every hop, each as if it began with ``delta``.
        options: further arguments of :func:`~anytune.jobs.recycle.recycle`, the same for every hop.

    Returns:
        The last hop's store entries, one per seed.

    Raises:
        WrongBaseError: the bases stand in an order that cannot be, or one stands there twice.
        StoreError: the bases between are to be found by their parents, and the store does not know them.
        AnytuneError: as ``recycle``.
    """
    place = open_store(store)
    entry = open_delta(delta, place)
    old, new = base_of_delta(entry, place, old_base), open_base(base, place)
    between = bases_between(old, new, place) if via == PARENTS else [open_base(one, place) for one in via]
    stops = [*between, new]
    check_order([old, *stops], place)
    if dry_run:
        return [
            forecast
            for stop in stops
            for forecast in recycle(
                entry, stop, store=place, old_base=old, seeds=seeds, name=name, dry_run=True, **options
            )
        ]
    entries, before, chosen = [entry], old, seeds
    for stop in stops:
        last = stop is new
        entries = [
            made
            for one in entries
            for made in recycle(
                one, stop, store=place, old_base=before, seeds=chosen if one is entry else [one.manifest.seed],
                keep=keep if last else "weights", name=name if last else None, **options,
            )
        ]  # fmt: skip
        before = stop
    return entries


def bases_between(old: Base, new: Base, store: Store) -> list[Base]:
    """The bases through which ``new`` was made from ``old``, first to last, neither included.

    Raises:
        StoreError: what the store knows of the parents of ``new`` does not lead to ``old``.
    """
    found: list[Entry] = []
    for entry in _ancestors(new.manifest, store):
        if entry.manifest.base.backbone == old.identity.backbone:
            return [open_base(one) for one in reversed(found)]
        found.append(entry)
    # the first base of a chain is often a sample or a hub's, which no manifest names
    if old.manifest is None and new.manifest is not None and new.manifest.id:
        return [open_base(one) for one in reversed(found)]
    names = ", ".join(entry.name for entry in found)
    raise StoreError(
        f"base {new.name} was not made from {old.name}, as far as the store knows"
        + (f"; its parents are {names}" if names else ""),
        why="The bases between are found by the parents in their manifests.",
        fix="--via BASE   (each base between, first to last)",
    )


def check_order(bases: Sequence[Base], store: Store) -> None:
    """Refuse a chain in which a base comes after one that was made from it, or comes twice.

    Raises:
        WrongBaseError: names the two.
    """
    seen: dict[str, Base] = {}
    for base in bases:
        if base.identity.backbone in seen:
            raise WrongBaseError(
                f"the chain has base {base.name} twice",
                why="A hop from a base to itself carries nothing over.",
                fix="--via each base between, once, first to last",
            )
        older = {one.manifest.base.backbone for one in _ancestors(base.manifest, store)}
        seen[base.identity.backbone] = base
        for later in bases[len(seen) :]:
            if later.identity.backbone in older:
                raise WrongBaseError(
                    f"base {later.name} comes after {base.name} in the chain, which was made from it",
                    why="Deltas are carried forward, in the order in which the bases were made.",
                    fix=f"--via {later.name} before {base.name}",
                )


def _ancestors(manifest: Manifest | None, store: Store) -> list[Entry]:
    """The bases that a base was made from, the nearest first, as far as the store has them."""
    found: list[Entry] = []
    while manifest is not None:
        parent = next((one for one in manifest.parents if one.role == "base"), None)
        if parent is None:
            break
        try:
            entry = store.get(parent.id)
        except StoreError:
            break
        if any(one.id == entry.id for one in found):
            break  # a cycle: manifests were edited by hand
        found.append(entry)
        manifest = entry.manifest
    return found


def stops_given(via: Sequence[str]) -> Literal["parents"] | list[str | Path]:
    """What ``--via`` was given, as ``recycle_chain`` takes it."""
    if list(via) == [PARENTS]:
        return "parents"
    return [*via]
