"""What the library keeps of a task beside its prompt, so that ranking it again reads no text: ``task_features``.

    embedding.POOLING   [d]   mean over rows of the pooled last hidden states, with the prompt
    plain.POOLING       [d]   the same without it: what the texts alone look like
    neurons             [blocks * d_ff / 8]   packed bits (:class:`FiredNeurons`); missing for kinds without
    shares, documents   [8192]   what words the rows hold, by a hash of the word (:class:`TaskWords`)
    texts, examples     [rows]   hashes of each row's text, and of text and label, to know the same data again

The file lies beside the weights and is no part of the artefact's content: it can be made again from the task and the
prompt. It says itself what it was made of, and its own SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from anytune.data.batches import Encoded, encode_task, evaluation_batches
from anytune.data.splits import choose, strata_of
from anytune.data.tasks import Example, Task
from anytune.engine.runtime import Runtime
from anytune.errors import BaseError, DataError
from anytune.evaluate.transferability import EmbeddingMean, TaskWords, task_words
from anytune.jobs.prompt_reading import look
from anytune.manifests import caches_written, write_atomic
from anytune.models.base import Base
from anytune.models.soft_prompts import given_prompt_values
from anytune.store import Entry

FEATURES_NAME = "task_features.safetensors"
FORMAT = 1
#: Rows of the training split that a task is embedded by, and the seed that draws them.
ROWS, SEED = 256, 0
#: Tokens of a text that are read where nobody says.
MAX_LENGTH = 128


@dataclass(frozen=True)
class TaskFeatures:
    """What is kept of a task; arrays as at the top of this module.

    Attributes:
        task: content hash of the task, as the run saw it.
        weights: id of the artefact whose prompt it was.
        rows: texts that were read, drawn by ``seed``.
        size: training rows of the task.
        max_length: tokens at which texts were cut.
    """

    task: str
    weights: str
    rows: int
    seed: int
    size: int
    max_length: int
    embedding: Mapping[str, np.ndarray]
    plain: Mapping[str, np.ndarray]
    words: TaskWords
    texts: np.ndarray
    examples: np.ndarray
    neurons: np.ndarray | None = None


def sampled(task: Task, rows: int = ROWS, seed: int = SEED) -> tuple[Example, ...]:
    """At most so many training rows, stratified; the same for the same task and seed.

    Raises:
        DataError: the task has no training row.
    """
    if not task.train:
        raise DataError(f"'{task.name}' has no training row", why="A task is embedded by its texts.")
    if len(task.train) <= rows:
        return task.train
    strata = strata_of([row.label for row in task.train], task.kind)
    return tuple(task.train[row] for row in choose(strata, rows, "task features", seed))


def encoded_rows(task: Task, rows: Sequence[Example], base: Base, max_length: int) -> Encoded:
    """Rows as token ids without labels: of generation the prompts alone."""
    if task.kind == "generation":
        rows = [Example(row.text, None, 0) for row in rows]
    return encode_task(rows, base.tokenizer(), max_length, None)


def task_features(
    model: nn.Module, base: Base, task: Task, runtime: Runtime, *, weights: str = "", rows: int = ROWS,
    seed: int = SEED, max_length: int = MAX_LENGTH, batch_size: int = 32,
) -> TaskFeatures:  # fmt: skip
    """Features of a task under the prompt that stands on ``model``."""
    read = sampled(task, rows, seed)
    batches = list(evaluation_batches(encoded_rows(task, read, base, max_length), batch_size))
    try:
        own = look(model, base.anatomy, batches, runtime, neurons=True)
    except BaseError:  # where neurons are is not known for every kind
        own = look(model, base.anatomy, batches, runtime)
    with given_prompt_values(model, None):
        plain = look(model, base.anatomy, batches, runtime)
    return TaskFeatures(
        task=task.content, weights=weights, rows=len(read), seed=seed, size=len(task.train), max_length=max_length,
        embedding={kind: means(values) for kind, values in own.pooled.items()},
        plain={kind: means(values) for kind, values in plain.pooled.items()},
        neurons=own.neurons, words=task_words(map(text_of, read)), texts=text_hashes(read),
        examples=example_hashes(task, read),
    )  # fmt: skip


def means(values: Tensor) -> np.ndarray:
    """The mean of [N, d] over rows."""
    found = EmbeddingMean()
    found.add(values)
    return found.mean()


def text_hashes(rows: Sequence[Example]) -> np.ndarray:
    """A 63-bit hash of each row's text, whatever its case and spacing, [rows] int64."""
    return np.array([_hash(text_of(row)) for row in rows], dtype=np.int64)


def example_hashes(task: Task, rows: Sequence[Example]) -> np.ndarray:
    """A 63-bit hash of each row's text and label, [rows] int64; labels by their names."""

    def named(label: Any) -> str:
        if isinstance(label, tuple):
            return " ".join(task.label_names[tag] for tag in label)
        return task.label_names[label] if task.kind == "classification" else str(label)

    return np.array([_hash(text_of(row), named(row.label)) for row in rows], dtype=np.int64)


def text_of(row: Example) -> str:
    """The text of a row, of pairs both."""
    return f"{row.text}\n{row.text_pair}" if row.text_pair else row.text


def _hash(text: str, label: str = "") -> int:
    plain = " ".join(text.lower().split()) + "\0" + label
    return int.from_bytes(hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


# Files


def keep_features(entry: Entry, model: nn.Module, base: Base, task: Task, runtime: Runtime) -> TaskFeatures:
    """Make the features of a stored prompt and put them beside it.

    Args:
        model: a task model with the prompt on it.
    """
    length = int(entry.manifest.training.get("max_length") or MAX_LENGTH)
    made = task_features(
        model.to(runtime.device), base, task, runtime, weights=entry.id,
        max_length=length if base.position_limit is None else min(length, base.position_limit),
    )  # fmt: skip
    if caches_written():
        write_features(entry.folder, made)
    return made


def write_features(folder: Path, features: TaskFeatures) -> None:
    """Write the file beside the weights; it appears whole or not at all."""
    arrays = _arrays(features)
    facts = {
        "format": str(FORMAT), "task": features.task, "weights": features.weights, "rows": str(features.rows),
        "seed": str(features.seed), "size": str(features.size), "max_length": str(features.max_length),
        "sha256": _digest(arrays),
    }  # fmt: skip
    write_atomic(folder / FEATURES_NAME, save(arrays, facts))


def read_features(folder: Path, weights: str) -> TaskFeatures | str:
    """The features beside a prompt, or why they cannot be used: missing, damaged, or of other weights.

    Args:
        weights: id of the artefact they must be of.
    """
    path = folder / FEATURES_NAME
    if not path.is_file():
        return "none were made"
    try:
        with safe_open(str(path), framework="np") as file:
            facts = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if facts.get("format") != str(FORMAT) or _digest(arrays) != facts.get("sha256"):
            return f"{FEATURES_NAME} is damaged or of another version"
        if facts["weights"] != weights:
            return f"{FEATURES_NAME} is of another artefact ({facts['weights'][:12]})"
        sides: dict[str, dict[str, np.ndarray]] = {"embedding": {}, "plain": {}}
        for name, array in arrays.items():
            side, _, pooling = name.partition(".")
            if side in sides:
                sides[side][pooling] = array
        numbers = {key: int(facts[key]) for key in ("rows", "seed", "size", "max_length")}
        return TaskFeatures(
            task=facts["task"], weights=weights, embedding=sides["embedding"], plain=sides["plain"],
            neurons=arrays.get("neurons"),
            words=TaskWords(numbers["rows"], arrays["shares"], arrays["documents"]), texts=arrays["texts"],
            examples=arrays["examples"], **numbers,
        )  # fmt: skip
    except (SafetensorError, OSError, KeyError, ValueError, json.JSONDecodeError):
        return f"{FEATURES_NAME} is damaged"


def _arrays(features: TaskFeatures) -> dict[str, np.ndarray]:
    arrays = {f"embedding.{kind}": values for kind, values in features.embedding.items()}
    arrays |= {f"plain.{kind}": values for kind, values in features.plain.items()}
    arrays |= {"shares": features.words.shares, "documents": features.words.documents}
    arrays |= {"texts": features.texts, "examples": features.examples}
    if features.neurons is not None:
        arrays["neurons"] = features.neurons
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
