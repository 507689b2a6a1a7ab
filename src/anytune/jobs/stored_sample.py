"""Some of a task's held-out rows, kept beside a delta: what an upgrade of a whole store scores it on.

``tune`` and ``recycle`` write up to :data:`KEPT_ROWS` rows of the validation split (texts and gold labels, one JSON
object a line) beside the weights. They are no part of the artefact's content, and what is exported or pushed goes
without them unless they are asked for. Only these rows decide in an upgrade; the test split never does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.data.splits import choose, strata_of
from anytune.data.tasks import Example, Task
from anytune.errors import StoreError
from anytune.manifests import SAMPLE_NAME, Manifest, SampleRecord, sha256_file
from anytune.store import Entry

#: Rows at most: the standard error of an accuracy of 0.9 is then below 2 points.
KEPT_ROWS = 256


def chosen_rows(rows: Sequence[Example], kind: str, size: int = KEPT_ROWS) -> list[Example]:
    """At most ``size`` of a task's rows, stratified; which ones depends on their labels and number alone."""
    if len(rows) <= size:
        return list(rows)
    return [rows[row] for row in choose(strata_of([row.label for row in rows], kind), size, "stored sample")]


def write_sample(folder: Path, task: Task) -> SampleRecord | None:
    """Write ``sample.jsonl`` of a task's validation rows into a folder; None where it has none."""
    rows = chosen_rows(task.validation, task.kind)
    if not rows:
        return None
    path = folder / SAMPLE_NAME
    with path.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(_line(row, task.label_names), ensure_ascii=False) + "\n")
    return SampleRecord(rows=len(rows), of=len(task.validation), sha256=sha256_file(path))


def read_sample(entry: Entry) -> Task | None:
    """The stored rows as the validation split of a task without training and test rows; None if none were kept.

    Raises:
        StoreError: the file is missing, damaged, or not the one the manifest speaks of.
    """
    manifest = entry.manifest
    if manifest.sample is None or manifest.task is None:
        return None
    path = entry.folder / SAMPLE_NAME
    if not path.is_file():
        return None  # shared without it
    if sha256_file(path) != manifest.sample.sha256:
        raise _damaged(entry, "its SHA-256 is not the one in the manifest")
    names = {name: index for index, name in enumerate(manifest.label_names)}
    try:
        with path.open(encoding="utf-8") as handle:
            rows = [_example(json.loads(line), names) for line in handle]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise _damaged(entry, str(problem)) from None
    return bare_task(manifest).with_rows(validation=rows)


def bare_task(manifest: Manifest) -> Task:
    """A delta's task as its manifest knows it: no rows."""
    record = manifest.task
    assert record is not None
    return Task(
        name=record.name, kind=record.kind, metric=record.metric, train=(), validation=(), test=(),
        label_names=tuple(manifest.label_names), text_columns=tuple(record.text_columns),
        label_column=record.label_column, ref=record.ref, content="",
    )  # fmt: skip


def _line(row: Example, names: Sequence[str]) -> dict[str, Any]:
    label: Any = row.label
    if isinstance(label, tuple):
        label = [names[tag] for tag in label]
    elif names and isinstance(label, int):
        label = names[label]
    said = {"text": row.text, "text_pair": row.text_pair, "words": list(row.words) if row.words else None}
    return {key: value for key, value in said.items() if value is not None} | {"label": label}


def _example(line: dict[str, Any], names: dict[str, int]) -> Example:
    label = line["label"]
    if isinstance(label, list):
        label = tuple(names[tag] for tag in label)
    elif names:
        label = names[label]
    words = line.get("words")
    return Example(line["text"], line.get("text_pair"), label, tuple(words) if words else None)


def _damaged(entry: Entry, how: str) -> StoreError:
    return StoreError(
        f"the held-out rows of '{entry.reference}' ({SAMPLE_NAME}) are damaged: {how}",
        why="A score on other rows would say nothing about these weights.",
        fix=f"copy the folder again, or delete {SAMPLE_NAME} and give the rows: --task {entry.name}=FILE",
    )
