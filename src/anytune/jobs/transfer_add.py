"""Prompts made elsewhere join the library: ``anytune transfer add``.

A plain PEFT folder of a prompt, a P-tuning v2 checkpoint, or a prompt that is stored already and lacks what ranking
needs of its task. The data it was tuned on are read once for that; they are not kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.runtime import make_runtime
from anytune.errors import DeltaError, SettingsError, StoreError
from anytune.jobs.opening import base_of_delta, open_base, open_delta, open_store, open_task
from anytune.jobs.prompt_library import features_of, is_prompt, model_of
from anytune.jobs.prompt_sources import prompt_of_entry
from anytune.jobs.recycle import check_labels, known_columns
from anytune.jobs.task_features import TaskFeatures, keep_features
from anytune.jobs.tune import Source
from anytune.manifests import MANIFEST_NAME
from anytune.models.adapters import CONFIG_FILE
from anytune.models.base import Base
from anytune.models.prompt_files import import_ptuning
from anytune.store import Entry, Store
from anytune.store.importing import import_adapter


def add_prompt(
    prompt: Entry | Source,
    *,
    base: Base | Entry | Source | None = None,
    task: Task | Source | Mapping[str, Any] | None = None,
    store: Store | Source | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    **columns: Any,
) -> tuple[Entry, TaskFeatures | str]:
    """Adopt a prompt, and make the features of its task.

    Args:
        prompt: a PEFT folder, a P-tuning v2 checkpoint (a folder or a safetensors file), or a stored prompt.
        base: the base it was tuned on; needed for what is adopted.
        task: the data it was tuned on; of a stored prompt by default what its manifest refers to.
        name: of the delta.
        columns: how the task is read.

    Returns:
        The stored prompt and its features; or, where there is no task, why they cannot be had.

    Raises:
        DeltaError: it is no prompt.
        WrongBaseError: it does not fit the base.
        DataError: the task's labels are not those of its head.
    """
    place = open_store(store)
    path = Path(str(prompt)) if not isinstance(prompt, Entry) else prompt.folder
    adopted = (
        not isinstance(prompt, Entry) and path.exists() and path.resolve().parent.parent != place.folder.resolve()
    )
    if not adopted:
        entry = open_delta(prompt, place)
        data = None if task is None else opened_task(task, entry, columns)
        return entry, _features(entry, base_of_delta(entry, place, base), data)
    if base is None:
        raise SettingsError("no base is given", why="A prompt says nothing about its base.", fix="--base BASE")
    belongs = open_base(base, place)
    data = None if task is None else open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
    entry = _adopted(path, belongs, place, data, name, tags)
    if not is_prompt(entry):
        place.remove(entry, force=True)
        raise DeltaError(
            f"{path.name} is no soft prompt", why="The library holds prompts alone.",
            fix=f"anytune store import {path.name} --base BASE",
        )  # fmt: skip
    return entry, _features(entry, belongs, data)


def opened_task(task: Any, entry: Entry, columns: Mapping[str, Any]) -> Task:
    """The data of a stored prompt.

    Raises:
        DataError: their labels are not those of its head.
    """
    if isinstance(task, Task):
        data = task
    else:
        data = open_task(
            dict(task) if isinstance(task, Mapping) else task, **{**known_columns(entry.manifest), **columns}
        )
    check_labels(entry.manifest, data)
    return data


def _features(entry: Entry, base: Base, task: Task | None) -> TaskFeatures | str:
    if task is None:
        return features_of(entry, base)
    return keep_features(entry, model_of(prompt_of_entry(entry), base), base, task, make_runtime("fp32"))


def _adopted(
    path: Path, base: Base, store: Store, task: Task | None, name: str | None, tags: Mapping[str, str] | None
) -> Entry:
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        return import_adapter(store, path, base, name=name)
    known: dict[str, Any] = {"name": name, "tags": tags}
    if task is not None:
        known |= {"task": task.record(), "label_names": list(task.label_names) or None}
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return import_adapter(store, path, base, **known)
    if task is None:
        raise StoreError(
            f"{path.name} says nothing about its task", why="Its head answers without a name.", fix="--task DATA"
        )
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / (name or (path if path.is_dir() else path.parent).resolve().name or "prompt")
        import_ptuning(path, base, task.kind).save(there, base.identity)
        return import_adapter(store, there, base, **known)
