"""The file of a full delta: ``delta.safetensors``, one file, its record in the header.

Tensors are kept by part, ``PART/NAME``: a difference as ``difference`` (dense), as ``rows`` with ``row-values``
(tables of which at most half of the rows changed) or as ``entries`` (flat indices) with ``entry-values``, whichever is
smallest; ``correction-index`` with ``correction``, and ``head``. Tensors that did not change are not stored; the
record lists every body tensor with dtype and shape.

A file with the settings of bottleneck adapters has format version 3, one with entries version 2, any other version 1,
so that an anytune that knows no entries refuses such a file and reads all others: it would take a matrix whose parts
it does not know for one that did not change.
"""

from __future__ import annotations

import json
import math
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
from anytune.models.bottleneck import BottleneckConfig
from anytune.models.weights import write_tensors

DELTA_FILE = "delta.safetensors"
FORMAT = "anytune-full-delta"
#: the newest that is read; a file has the oldest that says all it holds
FORMAT_VERSION = 3
#: the first with a record of bottleneck adapters
WITH_BOTTLENECK = 3
#: Every part of a file, by the format version it came with.
PARTS = {
    "difference": 1, "rows": 1, "row-values": 1, "correction-index": 1, "correction": 1, "head": 1,
    "entries": 2, "entry-values": 2,
}  # fmt: skip
#: About what the header of a file says of one tensor, in bytes.
HEADER_BYTES = 100


@dataclass(frozen=True)
class DeltaContent:
    """What a delta's file holds; the fields are those of ``FullDelta``."""

    base: BaseIdentity
    model_type: str
    difference: dict[str, Tensor]
    corrections: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Tensor]
    body: dict[str, tuple[str, tuple[int, ...]]]
    bottleneck: dict[str, Any] | None = None


def write_delta(folder: Path, content: DeltaContent) -> Path:
    """Write the file into a folder (made if missing); equal contents give equal bytes.

    Raises:
        StoreError: the folder cannot be written; an earlier file stays as it was.
    """
    tensors: dict[str, Tensor] = {f"head/{name}": tensor for name, tensor in content.head.items()}
    for name, values in content.difference.items():
        tensors |= {f"{part}/{name}": tensor for part, tensor in smallest(values).items()}
    for name, (index, exact) in content.corrections.items():
        tensors[f"correction-index/{name}"], tensors[f"correction/{name}"] = index, exact
    version = max((PARTS[key.partition("/")[0]] for key in tensors), default=1)
    record: dict[str, Any] = {
        "format": FORMAT,
        "format_version": version if content.bottleneck is None else max(version, WITH_BOTTLENECK),
        "base": content.base.model_dump(mode="json"),
        "model_type": content.model_type,
        "body": {name: [dtype, list(shape)] for name, (dtype, shape) in content.body.items()},
    }
    if content.bottleneck is not None:
        record["bottleneck"] = content.bottleneck
    write_tensors(folder / DELTA_FILE, tensors, {"anytune": canonical_json(record)})
    return folder / DELTA_FILE


def smallest(values: Tensor) -> dict[str, Tensor]:
    """The parts as which a difference takes the fewest bytes, what the header says of each included."""
    forms: list[dict[str, Tensor]] = [{"difference": values}]
    rows = arithmetic.changed_rows(values)
    if rows is not None:
        forms.append({"rows": rows.to(torch.int32), "row-values": values[rows]})
    entries = arithmetic.changed_entries(values)
    if values.numel() < 2**31:
        forms.append({"entries": entries.to(torch.int32), "entry-values": values.reshape(-1)[entries]})
    return min(forms, key=lambda form: sum(HEADER_BYTES + one.numel() * one.element_size() for one in form.values()))


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
    newer = [part for part in parts if PARTS.get(part, FORMAT_VERSION + 1) > record["format_version"]]
    if newer:
        raise ValueError(f"it holds {newer[0]}, which format {record['format_version']} does not have")
    values = dict(parts.get("difference", {}))
    for name, rows in parts.get("rows", {}).items():
        length = body[name][1][0]
        _check_places(name, rows, length)
        values[name] = arithmetic.from_rows(rows, parts["row-values"][name], length)
    for name, index in parts.get("entries", {}).items():
        exact, shape = parts["entry-values"][name], body[name][1]
        if index.shape != exact.shape or index.dim() != 1:
            raise ValueError(f"{name} has {tuple(index.shape)} places for {tuple(exact.shape)} entries")
        _check_places(name, index, math.prod(shape))
        values[name] = arithmetic.from_entries(index, exact, shape)
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
    inserted = record.get("bottleneck")
    if inserted is not None:
        inserted = BottleneckConfig.from_record(inserted).to_record()
    return DeltaContent(base, str(record["model_type"]), values, corrections, parts.get("head", {}), body, inserted)


def _check_places(name: str, places: Tensor, length: int) -> None:
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < length:
        raise ValueError(f"{name}: a place outside its {length} entries")
