"""A trained projection of outdated weights that another recycling is given (``recycle(projection=...)``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from anytune.errors import DeltaError, MethodError
from anytune.jobs.opening import open_delta, wrong_base
from anytune.jobs.tuning_plan import GivenProjection
from anytune.methods.protocol import Method
from anytune.methods.recycle.projection import FILE, PARTS, Projection
from anytune.models.base import Base
from anytune.store import Entry, Store

#: what the file holds
NAMES = {*PARTS, "layout", "residual"}


def given_projection(
    reference: Entry | str | Path | None, methods: Sequence[Method], base: Base, store: Store
) -> GivenProjection | None:
    """The projection a user names, read and checked.

    Args:
        reference: name, id, folder or entry of a delta that was recycled by ``projection``.
        methods: of the run; one of them must take it.
        base: the upgraded base, for which it was trained.
        store: where names are looked for.

    Raises:
        MethodError: no method takes it.
        StoreError: there is no such delta.
        WrongBaseError: it was trained for another base.
        DeltaError: the delta holds no projection, or its file is damaged.
    """
    if reference is None:
        return None
    if not any(isinstance(method, Projection) for method in methods):
        raise MethodError(
            f"a projection is given, and no method takes it: {', '.join(method.name for method in methods)}",
            why="It would be passed over without a word.",
            fix="--method projection",
        )
    entry = open_delta(reference, store)
    path = entry.folder / FILE
    if not path.is_file():
        raise DeltaError(
            f"'{entry.reference}' holds no projection",
            why="It is kept beside a delta that 'projection' was trained for.",
            fix="anytune recycle DELTA --base NEW_BASE --method projection",
        )
    if entry.manifest.base.backbone != base.identity.backbone:
        raise wrong_base(entry.manifest, base.identity, entry.reference)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as problem:
        raise DeltaError(
            f"cannot read {path}: {problem}", why="The file is truncated or no safetensors file.", fix="copy it again"
        ) from None
    if set(tensors) != NAMES:
        raise DeltaError(f"{path} holds {', '.join(sorted(tensors)[:5])}", why="That is no projection.")
    return GivenProjection(entry, tensors)
