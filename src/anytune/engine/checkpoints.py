"""Checkpoints: safetensors and JSON, atomic, the newest N kept.

A checkpoint holds everything the rest of the run depends on: trained weights, optimizer moments, the random state,
the methods' own state, the best weights so far and the position in the data (which is just the step: batches are a
pure function of seed and step). What is not trained is not stored; it comes from the base again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anytune.errors import StoreError, TrainingError
from anytune.manifests import METRICS_NAME, PARTIAL_PREFIX, sync, write_atomic

FORMAT = 2
_STATE = "state.json"
_TENSORS = "state.safetensors"


@dataclass
class Snapshot:
    """Tensors and JSON-able values of a run between two steps."""

    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, snapshot: Snapshot, keep: int = 2) -> Path:
    """Write ``folder/step-N`` atomically, then drop all but the newest ``keep`` (at least 1).

    Files are flushed to the disk before the folder gets its name, so a power cut leaves no checkpoint that looks
    whole and is not. Nothing is copied on the way: tensors on the CPU are written from where they lie.

    Raises:
        TrainingError: it cannot be written (full disk); those already there are untouched.
    """
    final = folder / f"step-{snapshot.step:08d}"
    partial = folder / f"{PARTIAL_PREFIX}{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        tensors = _writable(snapshot.tensors)
        save_file(tensors, partial / _TENSORS)
        sync(partial / _TENSORS)
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        content = {"format": FORMAT, "step": snapshot.step, "checksums": sums, **snapshot.values}
        write_atomic(partial / _STATE, json.dumps(content).encode())
        sync(partial)
        if final.exists():  # a damaged one, which the run could not go on from
            final.rename(folder / f"{PARTIAL_PREFIX}replaced-{final.name}")
        partial.rename(final)
        sync(folder)
    except (OSError, SafetensorError, StoreError) as problem:
        raise TrainingError(
            f"cannot write a checkpoint to {folder}: {str(problem).splitlines()[0]}",
            why="The run stops here; its last whole checkpoint is kept.",
            fix="free some space and give the same command again: it goes on from that checkpoint",
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _drop_old(folder, snapshot.step, keep)
    return final


def _drop_old(folder: Path, step: int, keep: int) -> None:
    """Of the checkpoints up to ``step`` only the newest stay; later ones are damaged, or it would have begun there."""
    found = checkpoints(folder)
    until = [path for path in found if _step_of(path) <= step]
    later = [path for path in found if _step_of(path) > step]
    for path in [*until[:-keep], *later, *folder.glob(f"{PARTIAL_PREFIX}replaced-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _writable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense tensors on the CPU; only those that share their storage, which safetensors refuses, are copied."""
    made: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        made[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return made


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes, eight at a time, modulo 2^64: cheap, and zeroed or torn pages change it."""
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    whole = data.size // 8 * 8
    words, rest = np.frombuffer(data[:whole], dtype="<i8"), data[whole:]
    return int(words.sum(dtype=np.int64)) + int(rest.sum(dtype=np.int64)) if data.size else 0


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / _STATE).exists()] if folder.exists() else []
    return sorted(found, key=lambda path: (len(path.name), path.name))  # past 8 digits, longer is later


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def load_checkpoint(folder: Path, passed_over: Callable[[str], None] | None = None) -> Snapshot | None:
    """The newest checkpoint that can be read, or None. A damaged one is passed over for the one before it.

    Args:
        passed_over: told of each damaged one, which and why.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as problem:
            if passed_over is not None:
                passed_over(f"checkpoint {path.name} cannot be used ({str(problem).splitlines()[0]})")
    return None


def _read(path: Path) -> Snapshot:
    values = json.loads((path / _STATE).read_text(encoding="utf-8"))
    made_by = values.pop("format", 1)
    if made_by != FORMAT:
        raise ValueError(f"it has format {made_by}, this version reads {FORMAT}")
    step, sums = values.pop("step"), values.pop("checksums")
    tensors = load_file(path / _TENSORS)
    for name, expected in sums.items():
        if _checksum(tensors[name]) != expected:
            raise ValueError(f"{name} is damaged")
    return Snapshot(step, tensors, values)


@dataclass(frozen=True)
class Newest:
    """How far a run has come: ``step`` of ``steps``, as of ``saved`` (seconds since 1970)."""

    step: int
    steps: int | None
    saved: float


def newest(folder: Path) -> Newest | None:
    """The newest checkpoint by its JSON alone, for a look that loads nothing; None if there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            values = json.loads((path / _STATE).read_text(encoding="utf-8"))
            return Newest(values["step"], values.get("run", {}).get("steps"), (path / _STATE).stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def drop_checkpoints(folder: Path) -> None:
    """Delete every checkpoint and the log of a run, so that it begins at step 0."""
    for path in [*folder.glob("step-*"), *folder.glob(f"{PARTIAL_PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)
    (folder / METRICS_NAME).unlink(missing_ok=True)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators, as byte tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set torch's global generators."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
