"""The file of a full delta: ``delta.safetensors``, one file, its record in the header.

Tensors are kept by part, ``PART/NAME``: ``difference`` (dense), ``rows`` with ``row-values`` (tables of which at most
half of the rows changed), ``correction-index`` with ``correction``, and ``head``. Tensors that did not change are not
stored; the record lists every body tensor with dtype and shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anytune.errors import DeltaError
from anytune.manifests import BaseIdentity, canonical_json
from anytune.models import difference as arithmetic
from anytune.models.weights import write_tensors

DELTA_FILE = "delta.safetensors"
FORMAT = "anytune-full-delta"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DeltaContent:
    """What a delta's file holds; the fields are those of ``FullDelta``."""

    base: BaseIdentity
    model_type: str
    difference: dict[str, Tensor]
    corrections: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Tensor]
    body: dict[str, tuple[str, tuple[int, ...]]]


def write_delta(folder: Path, content: DeltaContent) -> Path:
    """Write the file into a folder (made if missing); equal contents give equal bytes.

    Raises:
        StoreError: the folder cannot be written; an earlier file stays as it was.
    """
    tensors: dict[str, Tensor] = {f"head/{name}": tensor for name, tensor in content.head.items()}
    for name, values in content.difference.items():
        rows = arithmetic.changed_rows(values)
        if rows is None:
            tensors[f"difference/{name}"] = values
        else:
            tensors[f"rows/{name}"] = rows.to(torch.int32)
            tensors[f"row-values/{name}"] = values[rows]
    for name, (index, exact) in content.corrections.items():
        tensors[f"correction-index/{name}"], tensors[f"correction/{name}"] = index, exact
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "base": content.base.model_dump(mode="json"),
        "model_type": content.model_type,
        "body": {name: [dtype, list(shape)] for name, (dtype, shape) in content.body.items()},
    }
    write_tensors(folder / DELTA_FILE, tensors, {"anytune": canonical_json(record)})
    return folder / DELTA_FILE


def read_delta(folder: Path) -> DeltaContent:
    """Read the file of a folder.

    Raises:
        DeltaError: it is missing, truncated, of another kind, of a newer format, or its record and tensors disagree.
    """
    path = folder / DELTA_FILE
    if not path.is_file():
        raise DeltaError(f"{path} does not exist", why="A full delta keeps its weights there.")
    try:
        with safe_open(str(path), framework="pt") as handle:
            record = _record(path, handle.metadata() or {})
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise DeltaError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): {problem}",
            why="The file is truncated or no safetensors file.",
            fix="copy it again, or tune again with the recipe in its manifest",
        ) from None
    try:
        return _content(record, tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as problem:
        raise DeltaError(f"{path} is damaged: {problem!r}", why="Its record and its tensors disagree.") from None


def _record(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        record = json.loads(metadata["anytune"])
    except (KeyError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DeltaError(f"{path} is no full delta of anytune", why="It was written by something else.")
    if not isinstance(record.get("format_version"), int) or record["format_version"] > FORMAT_VERSION:
        raise DeltaError(
            f"{path} has format {record.get('format_version')}; this anytune reads up to {FORMAT_VERSION}",
            why="It was written by a newer anytune.",
            fix="pip install --upgrade anytune",
        )
    return record


def _content(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DeltaContent:
    body = {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in record["body"].items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    values = dict(parts.get("difference", {}))
    for name, rows in parts.get("rows", {}).items():
        length = body[name][1][0]
        _check_places(name, rows, length)
        values[name] = arithmetic.from_rows(rows, parts["row-values"][name], length)
    for name, tensor in values.items():
        if tuple(tensor.shape) != body[name][1]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, recorded {list(body[name][1])}")
    corrections = {}
    for name, exact in parts.get("correction", {}).items():
        index = parts["correction-index"][name]
        _check_places(name, index, values[name].numel())
        if index.shape != exact.shape:
            raise ValueError(f"{name} has {len(index)} places for {len(exact)} corrections")
        corrections[name] = (index, exact)
    base = BaseIdentity.model_validate(record["base"])
    return DeltaContent(base, str(record["model_type"]), values, corrections, parts.get("head", {}), body)


def _check_places(name: str, places: Tensor, length: int) -> None:
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < length:
        raise ValueError(f"{name}: a place outside its {length} entries")
