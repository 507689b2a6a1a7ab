"""The library of soft prompts: the deltas of a store that are prompts of one base, with what is kept of their tasks.

There is nothing beside the store to keep in step: a prompt belongs to the library because it is stored, and what
ranking needs of its task stands in a file beside it (:mod:`anytune.jobs.task_features`), written when the run is
stored. Where that file is missing or damaged it is made again, as long as the task's data can be had again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from anytune.data.samples import get_sample
from anytune.data.tasks import Task
from anytune.engine.runtime import Runtime, make_runtime
from anytune.errors import AnytuneError, DataError, SampleError, StoreError
from anytune.jobs.opening import open_task
from anytune.jobs.prompt_sources import prompt_of_entry, same_task
from anytune.jobs.recycle import known_columns
from anytune.jobs.subsets import subsets
from anytune.jobs.task_features import (
    TaskFeatures,
    example_hashes,
    keep_features,
    read_features,
    text_hashes,
)
from anytune.manifests import TaskRecord, load_json
from anytune.models.adapters import CONFIG_FILE
from anytune.models.base import Base
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.models.soft_prompts import PromptSource, attach_prompt, detach_prompt, make_prompt
from anytune.store import Entry, Store

#: Two tasks are over the same texts if at least this share of the smaller sample's texts is in the other.
SAME_TEXTS = 0.1
#: ... and are one task if at least this share of the examples, label included, is.
SAME_EXAMPLES = 0.5
#: What the keys of a recipe that decide which rows a run trained on are called.
_SUBSET_KEYS = ("train_size", "per_class", "subset_seed")
_COLUMN_KEYS = ("text", "label", "metric", "kind", "validation", "test", "split_seed", "validation_fraction",
                "test_fraction", "limit", "label_names")  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A prompt of the library as one that may be ranked for a task.

    Attributes:
        features: what is kept of its task; where there is none, ``missing`` says why.
        is_self: it was tuned on the task itself, or on (nearly) the same examples: left out of every ranking.
        family: its task is over (in part) the same texts.
    """

    entry: Entry
    prompt: PromptSource
    features: TaskFeatures | None
    missing: str = ""
    is_self: bool = False
    family: bool = False

    @property
    def name(self) -> str:
        """What tables call it: its task, and its own name where they differ."""
        task = self.entry.manifest.task
        return task.name if task else self.entry.name


def is_prompt(entry: Entry) -> bool:
    """Whether a stored delta is a soft prompt; of a damaged one False."""
    if entry.manifest.kind != "delta" or entry.manifest.form != "peft":
        return False
    try:
        config = load_json(entry.folder / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(config, Mapping) and is_soft_prompt(config)


def prompts_of(store: Store, base: Base) -> list[Entry]:
    """All prompts of a base in a store, oldest first."""
    return [entry for entry in store.find("delta", base=base.identity, form="peft") if is_prompt(entry)]


def one_per_task(entries: Sequence[Entry]) -> list[Entry]:
    """Of the prompts of one task the one that validates best, the earliest of equals; in the order of the tasks."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        task = entry.manifest.task
        key = entry.id if task is None else (task.name, task.ref, task.label_column, task.kind)
        groups.setdefault(key, []).append(entry)
    chosen = []
    for found in groups.values():
        scored = [entry for entry in found if entry.score() is not None and not entry.manifest.failed]
        chosen.append(_best(scored) if scored else found[0])
    return chosen


def _best(entries: Sequence[Entry]) -> Entry:
    from anytune.store.search import goodness

    return max(entries, key=lambda entry: goodness(entry.main_metric(), entry.score() or 0.0))


def candidates(
    entries: Sequence[Entry], base: Base, task: Task | None, *, runtime: Runtime | None = None
) -> tuple[list[Candidate], list[str]]:
    """The prompts as candidates for ``task``, and what is wrong with those that cannot be used.

    A prompt that cannot be read (damaged, NaN) is left out with a word; one without features stays, for metrics that
    need none.
    """
    made, problems = [], []
    for entry in entries:
        try:
            prompt = prompt_of_entry(entry)
        except AnytuneError as problem:
            problems.append(problem.what)
            continue
        found = features_of(entry, base, prompt=prompt, runtime=runtime)
        features, missing = (None, found) if isinstance(found, str) else (found, "")
        is_self, family = (False, False) if task is None else relation(entry.manifest.task, features, task)
        made.append(Candidate(entry, prompt, features, missing, is_self, family))
    return made, problems


# Which tasks are the same, or over the same texts


def relation(record: TaskRecord | None, features: TaskFeatures | None, task: Task) -> tuple[bool, bool]:
    """(is the same task, is over the same texts) of a prompt's task and another."""
    if record is not None and same_task(record, task):
        return True, True
    related = record is not None and share_texts(record.ref, task.ref)
    if features is None:
        return False, related
    rows = [*task.train, *task.validation, *task.test]
    if share_of(features.examples, example_hashes(task, rows)) >= SAME_EXAMPLES:
        return True, True
    return False, related or share_of(features.texts, text_hashes(rows)) >= SAME_TEXTS


def share_texts(one: str | None, other: str | None) -> bool:
    """Whether two references name samples that the catalogue says are over (almost) the same texts."""
    if not one or not other or not one.startswith("sample:") or not other.startswith("sample:"):
        return False
    try:
        sample = get_sample(one)
    except SampleError:
        return False
    return other.removeprefix("sample:") in (sample.name, *sample.shares_text_with)


def share_of(own: np.ndarray, others: np.ndarray) -> float:
    """Share of ``own`` that is among ``others``, or of ``others`` among ``own`` where they are fewer."""
    if not own.size or not others.size:
        return 0.0
    few, many = sorted((np.unique(own), np.unique(others)), key=len)
    return float(np.isin(few, many).mean())


# Features


def features_of(
    entry: Entry, base: Base, *, prompt: PromptSource | None = None, task: Task | None = None,
    runtime: Runtime | None = None,
) -> TaskFeatures | str:  # fmt: skip
    """What is kept of a prompt's task, made (and stored) if need be; or why it cannot be had.

    Args:
        task: the data it was tuned on, where they are at hand.
    """
    found = read_features(entry.folder, entry.id)
    if not isinstance(found, str):
        return found
    try:
        data = task or task_behind(entry)
        model = model_of(prompt or prompt_of_entry(entry), base)
    except AnytuneError as problem:
        return f"{found}, and they cannot be made again: {problem.what}"
    return keep_features(entry, model, base, data, runtime or make_runtime("fp32"))


def model_of(prompt: PromptSource, base: Base) -> nn.Module:
    """A task model of the prompt's own task with the prompt and its head on it, in evaluation mode."""
    kind = prompt.task.kind if prompt.task else "classification"
    model: nn.Module = base.task_model(kind, prompt.label_names, 0)[0]
    model.load_state_dict(dict(prompt.head), strict=False)
    attach_prompt(model, make_prompt(model, prompt.config, base.anatomy, 0, values=prompt.values), base.anatomy)
    return model.eval()


class PromptModels:
    """Models to read texts with many prompts, one after the other; those of a kind share one body.

    Args:
        base: of all the prompts.
        device: where they compute.
    """

    def __init__(self, base: Base, device: torch.device) -> None:
        self.base, self.device = base, device
        self._models: dict[tuple[str, int], tuple[nn.Module, dict[str, torch.Tensor]]] = {}
        self._bodies: dict[str, Any] = {}

    @contextlib.contextmanager
    def with_prompt(self, prompt: PromptSource) -> Iterator[nn.Module]:
        """A task model with this prompt and its head on it, inside the block alone; in evaluation mode."""
        model, fresh = self._model(prompt)
        model.load_state_dict({**fresh, **prompt.head}, strict=False)
        anatomy = self.base.anatomy
        attach_prompt(model, make_prompt(model, prompt.config, anatomy, 0, values=prompt.values), anatomy)
        try:
            yield model
        finally:
            detach_prompt(model)

    def _model(self, prompt: PromptSource) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        kind = prompt.task.kind if prompt.task else "classification"
        key = (kind, len(prompt.label_names))
        if key not in self._models:
            model, head_names = self.base.task_model(kind, prompt.label_names, 0)
            state = model.state_dict()
            fresh = {name: state[name].clone() for name in head_names}
            purpose = "one answer" if kind in ("classification", "regression") else kind
            prefix = self.base.anatomy.prefix
            if kind != "generation" and hasattr(model, prefix):
                setattr(model, prefix, self._bodies.setdefault(purpose, getattr(model, prefix)))
            self._models[key] = (model.to(self.device).eval(), fresh)
        return self._models[key]


def task_behind(entry: Entry) -> Task:
    """The data a delta was tuned on, once more, cut as they were.

    Raises:
        DataError: they are another task now.
        StoreError: the manifest does not say where they are (no path ever stands in one).
        AnytuneError: they cannot be opened.
    """
    manifest = entry.manifest
    record = manifest.task
    if record is None or record.ref is None:
        raise StoreError(
            f"'{entry.reference}' does not say where its task's data are",
            why="Local files are not recorded.", fix=f"anytune transfer add {entry.reference} --task FILE",
        )  # fmt: skip
    recipe = manifest.recipe
    columns = {key: recipe[key] for key in _COLUMN_KEYS if recipe.get(key) is not None}
    source = recipe.get("task", record.ref)
    source = dict(source) if isinstance(source, Mapping) else record.ref
    task = open_task(source, **{**known_columns(manifest), **columns})
    size, per_class, drawn = (recipe.get(key) for key in _SUBSET_KEYS)
    if size is not None or per_class is not None:
        parts = subsets(task, size, None, per_class, drawn)
        task = parts.of(size, manifest.seed)
    if record.content and task.content != record.content:
        raise DataError(
            f"the data of '{entry.reference}' ({record.ref}) are not what it was tuned on",
            why="What is kept of a task must be of the same rows.",
            fix=f"anytune transfer add {entry.reference} --task FILE",
        )
    return task


def size_of(one: Candidate) -> int:
    """Training rows of a candidate's task."""
    if one.features is not None:
        return one.features.size
    record = one.entry.manifest.task
    return record.counts.get("train", 0) if record else 0
