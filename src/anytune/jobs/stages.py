"""The stages of a stream that a store holds already: what :func:`anytune.pretrain` would find, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytune.data.domains import Domain, joined, load_stream
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.jobs.opening import fitting, open_base, open_store
from anytune.jobs.pretrain import PackedDomain, _Stage, stream_of
from anytune.jobs.tune import Source
from anytune.methods import registry
from anytune.models.base import Base
from anytune.store import Entry, Store


def stored_stages(
    base: Base | Entry | Source,
    domains: Sequence[Domain],
    *,
    store: Store | Source | None = None,
    method: Any = "sequential",
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
    watch: Sequence[Domain] = (),
    there: Mapping[str, Entry] | None = None,
) -> list[Entry]:
    """The stages from the first on that are in the store, up to the first that is not; arguments as for ``pretrain``.

    Args:
        there: run key -> base, of the whole store; read from it by default.
    """
    place = open_store(store)
    current = first = open_base(base, place)
    heard = stream = load_stream(domains)
    flow = stream_of(registry.parse(method, "pretrain", current.anatomy.model_type))
    settings = fitting(training_settings(training, keep="last"), current)
    if flow == "joint":
        stream = (joined(heard),)
        if settings.steps is not None:
            settings = settings.model_copy(update={"steps": settings.steps * len(heard)})
    known = {domain.name: domain for domain in [*watch, *heard]}
    there = {entry.manifest.run: entry for entry in place.find("base")} if there is None else there
    runtime = make_runtime(settings.precision, sharding=settings.sharding)
    found: list[Entry] = []
    for domain in stream:
        stage = _Stage(
            base=current, domain=domain, parts=heard if flow == "joint" else (domain,), watched=list(known.values()),
            packed=_unpacked, methods=registry.parse(method, "pretrain", current.anatomy.model_type),
            settings=settings, seed=seed, name=f"{current.name}+{domain.name}", overlap={}, recipe={},
        )  # fmt: skip
        entry = there.get(stage.identity(runtime).key)
        if entry is None:
            break
        found.append(entry)
        current = first if flow == "restart" else open_base(entry)
    return found


def _unpacked(domain: Domain) -> PackedDomain:
    raise AssertionError(f"'{domain.name}' need not be packed to be looked for")
