"""Manifests: the ``anytune.json`` beside every artefact, and how artefacts appear on disk.

A manifest is the truth about the folder it stands in: what it is, which base it belongs to, how it was made, what it
scored, and a numeric probe that proves on loading that the weights still do what they did. No absolute path is ever
written into one, so a store can be copied, synced or shared. Artefacts appear atomically: written into a hidden
folder beside their final place, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anytune.errors import StoreError

MANIFEST_NAME = "anytune.json"
#: The run's log lies beside the weights and is not part of the content: it holds times, which differ from run to run.
METRICS_NAME = "metrics.jsonl"
#: Some of the task's held-out texts lie beside a delta, so that an upgrade can score it. They are no part of the
#: content either: with or without them it is the same artefact, and what is shared goes without them.
SAMPLE_NAME = "sample.jsonl"
FORMAT_VERSION = 1
PARTIAL_PREFIX = ".partial-"
#: Far more than any manifest or config needs; a file beyond them is damaged, or meant to exhaust who reads it.
JSON_BYTES, JSON_DEPTH = 100_000_000, 60


class _Record(BaseModel):
    # Newer versions may add keys: they are kept on a read and write, never an error.
    model_config = ConfigDict(extra="allow", validate_assignment=True)


class BaseIdentity(_Record):
    """Which base, by content. Two bases are compatible when ``backbone`` is equal; the other hashes are reported."""

    backbone: str
    config: str = ""
    vocabulary: str = ""
    name: str = ""
    #: ``sample:NAME`` or a hub id, where the base can be had again; never a path.
    ref: str | None = None

    @property
    def short(self) -> str:
        """Name and the first 10 digits of the backbone hash, as errors and tables show it."""
        return f"{self.name or 'base'} ({self.backbone[:10]})"


class Parent(_Record):
    """Another artefact this one was made from."""

    id: str
    role: Literal["base", "delta"]
    name: str = ""


class TaskRecord(_Record):
    """The task a delta was tuned on."""

    name: str
    content: str = ""
    kind: Literal["classification", "regression", "token-classification", "generation"] = "classification"
    metric: str = "accuracy"
    text_columns: list[str] = Field(default_factory=list)
    label_column: str = "label"
    counts: dict[str, int] = Field(default_factory=dict)
    ref: str | None = None


class DomainRecord(_Record):
    """A domain a base was pre-trained on; ``overlap`` counts texts shared with the held-out parts of known tasks."""

    name: str
    content: str = ""
    texts: int = 0
    tokens: int = 0
    overlap: dict[str, int] = Field(default_factory=dict)
    ref: str | None = None


class MethodRecord(_Record):
    """A method with all its settings."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class CurvePoint(_Record):
    """One evaluation during training: ``seconds`` counts training and not the evaluation itself."""

    step: int
    seconds: float
    split: str = "validation"
    scores: dict[str, float | None] = Field(default_factory=dict)
    loss: float | None = None


class Probe(_Record):
    """Token ids and what the weights answered to them: ``outputs[i]`` belongs to ``inputs[i]``."""

    inputs: list[list[int]]
    outputs: list[list[float]]
    tolerance: float = 1e-3


class SampleRecord(_Record):
    """The held-out rows beside a delta (:data:`SAMPLE_NAME`): how many, of how many, and the SHA-256 of the file."""

    rows: int
    of: int
    sha256: str


class Environment(_Record):
    """What the run ran on; bits are promised only for equal threads, precision and versions."""

    versions: dict[str, str] = Field(default_factory=dict)
    threads: int = 0
    precision: str = "fp32"
    #: why this precision: "as asked", or what the hardware does
    precision_reason: str = ""
    device: str = "cpu"
    #: processes that shared the batches of one run among them
    processes: int = 1


class Manifest(_Record):
    """The content of ``anytune.json``."""

    format_version: int = FORMAT_VERSION
    kind: Literal["base", "delta"]
    name: str
    #: SHA-256 over the files and the run; set by the store when the artefact is added.
    id: str = ""
    #: SHA-256 over everything that decides the result (see ``run_key``): the same command finds its result again.
    run: str = ""
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    #: for a base: its own hashes; for a delta: the hashes of the base it belongs to.
    base: BaseIdentity
    parents: list[Parent] = Field(default_factory=list)
    #: for a delta: how the weights are stored. "scores" = a control of which only the scores were kept.
    form: Literal["full", "peft", "scores"] | None = None
    task: TaskRecord | None = None
    label_names: list[str] = Field(default_factory=list)
    domains: list[DomainRecord] = Field(default_factory=list)
    methods: list[MethodRecord] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    #: split -> metric -> value, of the weights stored here (the best on validation).
    scores: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    curve: list[CurvePoint] = Field(default_factory=list)
    steps: int = 0
    #: the step whose weights are stored (best on validation, or the last)
    best_step: int = 0
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    environment: Environment = Field(default_factory=Environment)
    probe: Probe | None = None
    #: what ``anytune run`` needs to make this artefact again.
    recipe: dict[str, Any] = Field(default_factory=dict)
    #: free labels for grouping in reports, for example {"arm": "initialize", "upgrade": "v1"}.
    tags: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    #: why the run has no weights and no scores: it diverged. None for all others.
    failed: str | None = None
    #: for a delta: its stored held-out rows, if any were kept
    sample: SampleRecord | None = None
    #: of a delta that an upgrade of a store made: what was tried, what it scored and cost, and why this was taken
    decision: dict[str, Any] | None = None


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, streamed."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def run_key(**decides: Any) -> str:
    """The key of a run: a hash over everything that decides its result (job, base, task, methods, settings, seed).

    Two different configurations never share a key; the same command finds its finished or half-finished run again.
    """
    return digest(decides)


def load_json(path: Path) -> Any:
    """The value of a JSON file that may come from anybody.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8, no JSON, larger than ``JSON_BYTES``, nested deeper than ``JSON_DEPTH``, or holds
            half a character (a lone surrogate), which nothing could be written of.
    """
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise ValueError(f"{size:,} bytes, at most {JSON_BYTES:,} are read")
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a character can only stand there as an escape
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH}") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {JSON_DEPTH}")


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/anytune.json``.

    Raises:
        StoreError: it is missing, not JSON, of a newer format, or has fields of the wrong kind.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        raw = load_json(path)
    except FileNotFoundError:
        raise StoreError(
            f"{path} does not exist",
            why="Every base and delta carries a manifest; this folder has none.",
            fix="anytune store import FOLDER --base BASE   (adopts a plain PEFT folder)",
        ) from None
    except (OSError, ValueError) as problem:  # ValueError: no UTF-8, no JSON, 5000-digit numbers, a bomb
        raise StoreError(f"cannot read {path}: {problem}", why="The manifest is damaged.") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format {version}; this anytune reads up to {FORMAT_VERSION}",
            why="It was written by a newer anytune.",
            fix="pip install --upgrade anytune",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "top level"
        raise StoreError(f"{path} is not a valid manifest: {place}: {first['msg']}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``folder/anytune.json`` atomically; NaN and infinity, which JSON lacks, become null.

    Raises:
        StoreError: it cannot be written, or it could not be read again (null where a number is needed, as in the
            outputs of a probe; half a character).
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        content = json.loads(manifest.model_dump_json())  # the one dump that turns NaN into null everywhere
        Manifest.model_validate(content)
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        data = (text + "\n").encode()
    except (ValueError, TypeError, RecursionError) as problem:
        raise StoreError(
            f"the manifest of '{manifest.name}' cannot be written as JSON: {problem}",
            why="It could not be read again, and the artefact would be lost.",
            fix="finite numbers, and None where a score is undefined",
        ) from problem
    write_atomic(path, data)


_CACHES_WRITTEN: ContextVar[bool] = ContextVar("caches_written", default=True)


@contextlib.contextmanager
def caches_unwritten() -> Iterator[None]:
    """Inside, caches are read and none is written: a dry run leaves no trace."""
    before = _CACHES_WRITTEN.set(False)
    try:
        yield
    finally:
        _CACHES_WRITTEN.reset(before)


def caches_written() -> bool:
    """Whether what is worth keeping may be kept in a cache."""
    return _CACHES_WRITTEN.get()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as problem:
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from problem
    finally:  # also when interrupted; after the replace there is nothing left to delete
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all.

    Yields a hidden folder beside ``final``; on success it is flushed to disk and renamed to ``final``. If another
    process made ``final`` meanwhile (artefacts are content-addressed, so it holds the same), ours is dropped.

    Raises:
        StoreError: the place cannot be written (full disk, read-only); nothing is left behind.
    """
    partial = final.with_name(f"{PARTIAL_PREFIX}{final.name}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                sync(file)
        sync(partial)
        try:
            partial.rename(final)
        except OSError:
            if not (final / MANIFEST_NAME).exists():
                raise
        sync(final.parent)
    except OSError as problem:
        raise StoreError(
            f"cannot write {final}: {problem.strerror or problem}",
            why="Nothing was kept of this artefact; earlier ones are untouched.",
            fix="free some space, or name another --store",
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file's or folder's content on the disk itself before going on, so that a power cut cannot undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hashes(
    folder: Path, leave_out: tuple[str, ...] = (MANIFEST_NAME, METRICS_NAME, SAMPLE_NAME)
) -> dict[str, str]:
    """Relative name -> SHA-256 of every file below ``folder``, apart from the manifest, the log and held-out rows."""
    names = {file.relative_to(folder).as_posix(): file for file in sorted(Path(folder).rglob("*")) if file.is_file()}
    return {name: sha256_file(file) for name, file in names.items() if name not in leave_out}
