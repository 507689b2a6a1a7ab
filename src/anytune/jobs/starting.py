"""Start a new run from stored weights: ``anytune tune --start-from DELTA``.

Nothing of the delta's own run goes on: the optimizer, the schedule and the random state are fresh. Outdated weights
of another base are for ``recycle``; a stored base is just the ``base`` of the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytune.data.tasks import Task
from anytune.errors import DeltaError, SettingsError
from anytune.jobs.deltas import Outdated, load_delta
from anytune.jobs.moving import complete_head
from anytune.jobs.opening import open_delta, wrong_base
from anytune.jobs.recycle import check_labels
from anytune.manifests import MethodRecord
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.store import Entry, Store

#: Methods that make an adapter; one that starts from an adapter takes over its matrices in place of making new ones.
MAKES_ADAPTER = ("tune/lora",)


def starting_point(reference: Entry | str | Path, base: Base, task: Task, store: Store) -> Outdated:
    """A stored delta of ``base`` as the start of a new run.

    Raises:
        WrongBaseError: it belongs to another base; the error names both and the ``recycle`` command.
        DeltaError: only its scores were kept, or it is a soft prompt.
        DataError: its labels are not those of the task.
    """
    entry = open_delta(reference, store)
    if entry.manifest.base.backbone != base.identity.backbone:
        raise wrong_base(entry.manifest, base.identity, entry.reference)
    check_labels(entry.manifest, task)
    delta = load_delta(entry)
    if isinstance(delta, AdapterDelta) and is_soft_prompt(delta.config):
        raise DeltaError(
            f"'{entry.reference}' is a soft prompt, and such a run cannot start from one",
            why="A prompt is given to the methods that know what to do with it.",
            fix=f"--method prompt_transfer --source {entry.reference}   (from another task), or --method panda "
            f"--teacher {entry.reference}   (from this one)",
        )
    if isinstance(delta, AdapterDelta):
        delta = complete_head(delta, entry, base)
    return Outdated(entry, delta, base)


def methods_after(start: Outdated, methods: Sequence[Method]) -> tuple[list[Method], list[MethodRecord]]:
    """The methods that still run after such a start, and the records of those whose work the delta brings with it.

    From a full difference all of them run. An adapter is already in place: the method that would make one is left
    out, if it would make one like it.

    Raises:
        DeltaError: the delta is an adapter and the methods do not go on with one.
        SettingsError: the adapter was made with other settings.
    """
    if not isinstance(start.delta, AdapterDelta):
        return list(methods), []
    manifest, reference = start.entry.manifest, start.entry.reference
    makes = [method for method in methods if f"{method.room}/{method.name}" in MAKES_ADAPTER]
    if not makes:
        names = ", ".join(method.name for method in methods)
        raise DeltaError(
            f"'{reference}' is an adapter and cannot go on with method {names}",
            why="Its result would be a full difference; the adapter's own matrices are what is started from.",
            fix=f"--method lora, or anytune merge {reference}   (gives a plain model)",
        )
    made = [record for record in manifest.methods if record.name in MAKES_ADAPTER]
    for method in makes:
        record = registry.record(method)
        stored = next((one for one in made if one.name == record.name), None)
        for key, value in record.settings.items():
            if stored is not None and stored.settings.get(key, value) != value:
                raise SettingsError(
                    f"{method.name}.{key} = {value}, and '{reference}' was made with {stored.settings[key]}",
                    why="A run that starts from an adapter goes on with the adapter's own matrices.",
                    fix=f"--set {key}={stored.settings[key]}",
                )
    return [method for method in methods if method not in makes], [registry.record(method) for method in makes]
