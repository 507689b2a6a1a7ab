"""Tasks: labelled text with label names, a metric, and train / validation / test splits.

A task comes from a file or a folder of files, a named sample, or a data set of the Hugging Face hub (plain Parquet or
JSON; no code is ever run). Whatever the source, labels become indices into ``label_names``, whose order depends on
the training labels alone, and everything that decides results goes into ``content``, a hash.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anytune import manifests
from anytune.data import splits
from anytune.data.tables import (
    Table,
    choose_columns,
    folder_files,
    is_dataset_id,
    missing_source,
    read_dataset,
    read_table,
    shown,
)
from anytune.errors import DataError, SettingsError, nearest, unknown
from anytune.metrics import METRICS, default_metric

Kind = Literal["classification", "regression"]
KINDS = ("classification", "regression")
#: Numeric labels with a fraction and more distinct values than this are taken for a regression target.
MOST_NUMERIC_CLASSES = 20
SAMPLE_PREFIX = "sample:"


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes:
        text: the text, or the first of a pair.
        text_pair: the second of a pair, else None.
        label: an index into the task's label names, or for regression a finite number.
    """

    text: str
    text_pair: str | None
    label: int | float


@dataclass(frozen=True)
class Task:
    """Labelled text in three splits.

    Attributes:
        name: what tables call it.
        kind: "classification" or "regression".
        metric: a name of ``anytune.metrics.METRICS``; the validation score that selects.
        train: examples to tune on.
        validation: examples to select on.
        test: examples to report on.
        label_names: names of the classes, in a stable order; empty for regression.
        text_columns: the columns the texts came from, one or two.
        label_column: the column the labels came from.
        ref: "sample:NAME" or a data set id, where the task can be had again; None for local files.
        content: SHA-256 over texts, labels, splits and names.
        notes: what a careful reader should know: duplicates between splits, choices made.
    """

    name: str
    kind: Kind
    metric: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    label_names: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str
    ref: str | None
    content: str
    notes: tuple[str, ...] = ()

    def subset(self, train_size: int | None = None, per_class: int | None = None, seed: int = 0) -> Task:
        """A few-shot version: fewer training rows, no more validation rows than training rows, the whole test split.

        Subsets are stratified and decided by ``seed``; with one seed, a larger ``train_size`` contains a smaller one.

        Args:
            train_size: rows to keep; each class keeps at least one where the size allows.
            per_class: rows to keep of each class (classification).
            seed: decides which rows.

        Raises:
            SettingsError: both sizes are given, a size is below 1, or ``per_class`` for a regression task.
        """
        if train_size is None and per_class is None:
            return self
        if train_size is not None and per_class is not None:
            raise SettingsError(
                f"both train_size={train_size} and per_class={per_class}", why="They ask for two sizes.", fix="one"
            )
        if min(size for size in (train_size, per_class) if size is not None) < 1:
            raise SettingsError(
                f"a training subset of train_size={train_size}, per_class={per_class}", why="It needs a row."
            )
        strata = splits.strata_of([example.label for example in self.train], self.kind)
        if per_class is not None:
            if self.kind == "regression":
                raise SettingsError(f"per_class={per_class} on a regression task", fix=f"train_size={per_class}")
            rows = splits.choose_per_class(strata, per_class, "few-shot", seed)
        else:
            rows = splits.choose(strata, train_size or 1, "few-shot", seed)
        train = tuple(self.train[row] for row in rows)
        validation = _at_most(self.validation, len(train), self.kind, "few-shot validation", seed)
        wanted = f"{per_class} rows a class" if per_class is not None else f"{train_size} rows"
        note = f"few-shot: {wanted} asked for, {len(train)} taken, seed {seed}"
        return _finished(replace(self, train=train, validation=validation, notes=(*self.notes, note)))

    def record(self) -> manifests.TaskRecord:
        """What a manifest keeps of the task."""
        return manifests.TaskRecord(
            name=self.name,
            content=self.content,
            kind=self.kind,
            metric=self.metric,
            text_columns=list(self.text_columns),
            label_column=self.label_column,
            counts={split: len(getattr(self, split)) for split in splits.SPLITS},
            ref=self.ref,
        )


def _finished(task: Task) -> Task:
    """The task with its content hash set."""
    state = hashlib.sha256()
    facts = [task.kind, task.metric, list(task.label_names), len(task.text_columns)]
    state.update(manifests.canonical_json(facts).encode())
    for split in splits.SPLITS:
        state.update(f"\n{split}\n".encode())
        for example in getattr(task, split):
            row = manifests.canonical_json([example.text, example.text_pair, example.label])
            state.update(row.encode("utf-8", "surrogatepass") + b"\n")
    return replace(task, content=state.hexdigest())


def _at_most(examples: tuple[Example, ...], size: int, kind: str, *parts: str | int) -> tuple[Example, ...]:
    if len(examples) <= size:
        return examples
    strata = splits.strata_of([example.label for example in examples], kind)
    return tuple(examples[row] for row in splits.choose(strata, size, *parts))
