"""Stored soft prompts that a run is given: sources from other tasks, teachers of its own.

A prompt is read from the store with its head; what it is (its base, its values) is checked here, before anything is
trained. Whether its labels suit is for the method that uses them to say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from anytune.data.tasks import Task
from anytune.errors import DataError, DeltaError, SettingsError
from anytune.jobs.deltas import load_delta
from anytune.jobs.opening import open_delta, wrong_base
from anytune.jobs.tuning_plan import GivenPrompt
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.prompt_files import prompt_of_adapter
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.models.soft_prompts import PromptSource
from anytune.store import Entry, Store

Reference: TypeAlias = "Entry | str | Path | Mapping[str, Any]"
#: One prompt, or several, best first; a mapping names it as ``delta`` and may say its ``similarity`` to the task.
References: TypeAlias = "Reference | Sequence[Reference]"
KEYS = ("delta", "similarity")


def given_prompts(references: References | None, base: Base, store: Store, role: str = "sources") -> list[GivenPrompt]:
    """The prompts a user names, read and checked.

    Args:
        references: names, ids, folders or entries of deltas, or ``{"delta": ..., "similarity": 0.7}``.
        role: "sources" or "teachers", for errors.

    Raises:
        StoreError: there is no such delta.
        WrongBaseError: it belongs to another base.
        DeltaError: it is no soft prompt, only its scores were kept, or its values are not finite.
        SettingsError: it is named twice, or in a way that is none.
    """
    if references is None:
        return []
    several = [references] if isinstance(references, Entry | str | Path | Mapping) else list(references)
    role = role.removesuffix("s")
    found: list[GivenPrompt] = []
    for one in several:
        reference, similarity = _named(one, role)
        entry = open_delta(reference, store)
        if entry.manifest.base.backbone != base.identity.backbone:
            raise wrong_base(entry.manifest, base.identity, entry.reference)
        if any(entry.manifest.id == other.entry.manifest.id for other in found):
            raise SettingsError(f"{role} '{entry.reference}' is given twice", fix=f"--{role} {entry.name} once")
        found.append(GivenPrompt(entry, replace(prompt_of_entry(entry), similarity=similarity)))
    return found


def prompt_of_entry(entry: Entry) -> PromptSource:
    """A stored delta as the prompt it is, with its head.

    Raises:
        DeltaError: it is no soft prompt, only its scores were kept, it is damaged, or its values are not finite.
    """
    manifest = entry.manifest
    delta = load_delta(entry) if manifest.form != "full" else None
    if not isinstance(delta, AdapterDelta) or not is_soft_prompt(delta.config):
        kind = delta.config["peft_type"] if isinstance(delta, AdapterDelta) else None
        what = f"a {kind} adapter" if kind else "a full difference"
        raise DeltaError(
            f"'{entry.reference}' is {what}, not a soft prompt",
            why="Only what prompt tuning stored can be started from, or learnt from, as a prompt.",
            fix="anytune tune BASE TASK --method prompt_tuning   (makes one)",
        )
    config, values, head = prompt_of_adapter(delta)
    for name, tensor in {"the prompt": values, **head}.items():
        if not torch.isfinite(tensor).all():
            raise DeltaError(
                f"'{entry.reference}': {name} holds values that are not finite",
                why="Every answer of it would be NaN.", fix="another prompt, or tune it again at a lower rate",
            )  # fmt: skip
    return PromptSource(
        name=manifest.name, config=config, values=values, head=head, label_names=tuple(manifest.label_names),
        base=manifest.base, similarity=None, task=manifest.task,
    )  # fmt: skip


def refuse_self_pairs(sources: Collection[GivenPrompt], *tasks: Task) -> None:
    """Refuse a source that was tuned on the very task it is to help.

    Raises:
        DataError: names it.
    """
    for source in sources:
        record = source.entry.manifest.task
        if record is not None and any(same_task(record, task) for task in tasks):
            raise DataError(
                f"source '{source.entry.reference}' was tuned on '{record.name}', which is this very task",
                why="Going on with it is training longer, not transfer.",
                fix=f"a prompt of another task; as teacher: --method panda --teacher {source.entry.reference}",
            )


def same_task(record: Any, task: Task) -> bool:
    """Whether a delta's task is this one: the same rows, or other rows of the same columns of the same data set."""
    if record.content and record.content == task.content:
        return True
    columns = (record.label_column, record.text_columns) == (task.label_column, list(task.text_columns))
    return record.ref is not None and record.ref == task.ref and columns


def _named(one: Reference, role: str) -> tuple[Entry | str | Path, float | None]:
    if not isinstance(one, Mapping):
        return one, None
    if not set(one) <= set(KEYS) or "delta" not in one:
        raise SettingsError(
            f"{role} {dict(one)!r}", why=f"Its keys are {', '.join(KEYS)}.", fix="{delta: NAME, similarity: 0.7}"
        )
    similarity = one.get("similarity")
    if similarity is not None and (
        isinstance(similarity, bool) or not isinstance(similarity, int | float) or not -1 <= similarity <= 1
    ):
        raise SettingsError(
            f"{role} '{one['delta']}': similarity = {similarity!r}", why="It is a number from -1 to 1.",
            fix="similarity: 0.7",
        )  # fmt: skip
    return one["delta"], None if similarity is None else float(similarity)
