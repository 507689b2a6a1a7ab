"""Open what a user names: a base, a delta, a task, a domain; and find the base a delta belongs to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from anytune.data.domains import Domain, load_domain
from anytune.data.samples import sample_folder
from anytune.data.tasks import Task, load_task
from anytune.engine.settings import TrainingSettings
from anytune.errors import AnytuneError, BaseError, SettingsError, StoreError, WrongBaseError, nearest
from anytune.jobs.synthetic import is_synthetic, synthetic_task
from anytune.manifests import BaseIdentity, Manifest
from anytune.models.base import Base, load_base
from anytune.models.fingerprint import known_folders
from anytune.store import Entry, Store

DEFAULT_STORE = "anytune-store"
WARMED_PREFIX = "warmed:"


def open_store(store: Store | str | Path | None, create: bool = True) -> Store:
    """The store: a folder name, a Store, or None for ``anytune-store`` in the current folder."""
    return store if isinstance(store, Store) else Store(store or DEFAULT_STORE, create=create)


def open_base(reference: Base | Entry | str | Path, store: Store | None = None) -> Base:
    """A base by ``sample:NAME``, a folder, the name or id of a base in the store, or a hub id.

    ``warmed:NAME`` is a sample after a recorded warm-up on general text (:mod:`anytune.jobs.warm`), made once.

    Raises:
        BaseError: nothing of that name is a base; the message lists where was looked.
    """
    if isinstance(reference, Base):
        return reference
    if isinstance(reference, Entry):
        return load_base(reference.folder, resolve_sample=sample_folder)
    text = str(reference)
    if text.startswith(WARMED_PREFIX):
        from anytune.jobs.warm import warmed  # stands on pretrain, which stands on this

        return warmed(text.removeprefix(WARMED_PREFIX))
    if store is None or text.startswith("sample:") or Path(text).exists():
        return load_base(reference, resolve_sample=sample_folder)
    try:
        found = store.get(text)
    except StoreError:
        pass
    else:
        if found.manifest.kind == "base":
            return load_base(found.folder, resolve_sample=sample_folder)
    try:
        return load_base(reference, resolve_sample=sample_folder)
    except BaseError as problem:
        names = list(dict.fromkeys(entry.name for entry in store.find("base")))
        if not names or "/" in text:
            raise
        raise BaseError(
            problem.what, why=f"Bases of the store: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}.",
            fix=nearest(text, names) or f"{names[0]}, a folder, a hub id (owner/name), or a sample",
        ) from None  # fmt: skip


def fitting(settings: TrainingSettings, base: Base, asked: Collection[str] | None = None) -> TrainingSettings:
    """The settings with lengths the base can read: defaults are cut to its position table, given ones are checked.

    Args:
        asked: names of the settings that were asked for; by default all that were set.

    Raises:
        SettingsError: a length that was asked for is longer than the position table.
    """
    limit = base.position_limit
    changed = {}
    for name in ("max_length", "block_size"):
        wanted = getattr(settings, name)
        if limit is None or wanted <= limit:
            continue
        if name in (settings.model_fields_set if asked is None else asked):
            raise SettingsError(
                f"{name} = {wanted}, and base {base.name} reads at most {limit} tokens",
                why="It has no positions beyond that.",
                fix=f"{name}={limit}",
            )
        changed[name] = limit
    return settings.model_copy(update=changed) if changed else settings


def open_delta(reference: Entry | str | Path, store: Store) -> Entry:
    """A delta by name, id or folder.

    Raises:
        StoreError: there is none, there are several, or the name is that of a base.
    """
    entry = reference if isinstance(reference, Entry) else store.get(reference)
    if entry.manifest.kind != "delta":
        raise StoreError(
            f"'{entry.reference}' is a {entry.manifest.kind}, not a delta",
            why="A delta is what tuning a task on a base produced.",
            fix=f"anytune store list --kind delta --store {store.folder}",
        )
    return entry


def open_task(source: Task | str | Path | dict[str, Any], **options: Any) -> Task:
    """A task from a file, a folder of splits, ``sample:NAME`` or a datasets id (see ``data.tasks.load_task``).

    Also ``synthetic:rule=45,inputs=1,format=pair`` (see :mod:`anytune.jobs.synthetic`).
    """
    if isinstance(source, Task):
        return source
    if is_synthetic(source):
        return synthetic_task(**{**options, **(source if isinstance(source, dict) else {"source": str(source)})})
    return load_task(source, **options)


def open_domain(source: Domain | str | Path | Mapping[str, Any], **options: Any) -> Domain:
    """A domain from a file or ``sample:NAME`` (see ``data.domains.load_domain``)."""
    return source if isinstance(source, Domain) else load_domain(source, **options)


def base_of_delta(
    entry: Entry, store: Store, base: Base | Entry | str | Path | None = None, *, allow_other_base: bool = False
) -> Base:
    """The base a delta belongs to: the one given (checked), or found by its fingerprint.

    It is looked for in the delta's own store, then by its ``sample:`` name or hub id, then among the folders this
    machine has seen. No path stands in a manifest, so nothing else could be followed.

    Raises:
        WrongBaseError: the base given has another backbone; both are named, with the command that moves the delta.
        StoreError: no base is given and none with this fingerprint is to be found.
    """
    wanted = entry.manifest.base
    if base is not None:
        given = open_base(base, store)
        if given.identity.backbone != wanted.backbone and not allow_other_base:
            raise wrong_base(entry.manifest, given.identity, entry.reference)
        return given
    folder = store.base_of(entry.manifest) or _beside(entry)
    if folder is not None:
        return load_base(folder, resolve_sample=sample_folder)
    for place in [wanted.ref, *known_folders(wanted.backbone)]:
        if place is None:
            continue
        try:
            candidate = load_base(place, resolve_sample=sample_folder)
        except AnytuneError:
            continue
        if candidate.identity.backbone == wanted.backbone:
            return candidate
    raise StoreError(
        f"the base of '{entry.reference}' is not here: {wanted.short}",
        why="A delta is a difference from its base and means nothing without it.",
        fix="--base FOLDER   (the folder or hub id of that base; when recycling: --old-base FOLDER)",
    )


def wrong_base(manifest: Manifest, given: BaseIdentity, reference: str) -> WrongBaseError:
    """The error for a delta about to be put onto another base: names both and what to type."""
    return WrongBaseError(
        f"delta '{reference}' belongs to base {manifest.base.short}, not to {given.short}",
        why="The weights differ, so the delta would give a model nobody has tested.",
        fix=f"anytune recycle {reference} --base {given.ref or given.name or 'NEW_BASE'}",
    )


def _beside(entry: Entry) -> Path | None:
    """The base in the store that the delta's folder stands in, if that is another store than the one given."""
    root = entry.folder.resolve().parent.parent
    return Store(root, create=False).base_of(entry.manifest) if (root / "bases").is_dir() else None
