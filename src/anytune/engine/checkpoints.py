"""Checkpoints: safetensors and JSON, atomic, the newest N kept.

A checkpoint holds everything the rest of the run depends on: trained weights, optimizer moments, the random state,
the methods' own state, the best weights so far and the position in the data (which is just the step: batches are a
pure function of seed and step). What is not trained is not stored; it comes from the base again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anytune.errors import MethodError, StoreError, TrainingError
from anytune.manifests import PARTIAL_PREFIX, write_atomic

_STATE = "state.json"
_TENSORS = "state.safetensors"


@dataclass
class Snapshot:
    """Tensors and JSON-able values of a run between two steps."""

    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def split_state(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate a (nested) state into tensors, named by their path, and the JSON-able rest.

    ``{"a": tensor, "b": {"c": 1}}`` with prefix "m" -> ``({"m/a": tensor}, {"b": {"c": 1}})``.

    Raises:
        MethodError: a key holds a "/" (it would not be found again), or a value is no tensor and no JSON.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in state.items():
        if "/" in str(key):
            raise MethodError(f"the state of {prefix} has the key '{key}'", why="'/' separates the levels of a state.")
        if isinstance(value, Tensor):
            tensors[f"{prefix}/{key}"] = value
        elif isinstance(value, Mapping):
            inner, values[str(key)] = split_state(f"{prefix}/{key}", value)
            tensors |= inner
        else:
            try:
                values[str(key)] = json.loads(json.dumps(value))  # a copy: the state may change while it is written
            except (TypeError, ValueError):
                raise MethodError(
                    f"the state of {prefix} holds {key} = {value!r:.60}",
                    why="A checkpoint holds tensors and JSON only, nothing pickled.",
                ) from None
    return tensors, values


def join_state(prefix: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`split_state` (keys come back as strings)."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        joined[key] = join_state(f"{prefix}/{key}", tensors, value) if isinstance(value, Mapping) else value
    for name, tensor in tensors.items():
        rest = name.removeprefix(f"{prefix}/")
        if rest != name and "/" not in rest:
            joined[rest] = tensor
    return joined


def save_checkpoint(folder: Path, snapshot: Snapshot, keep: int = 2) -> Path:
    """Write ``folder/step-N`` atomically, then drop all but the newest ``keep`` (at least 1).

    Raises:
        TrainingError: it cannot be written (full disk); those already there are untouched.
    """
    final = folder / f"step-{snapshot.step:08d}"
    partial = folder / f"{PARTIAL_PREFIX}{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        # clone: safetensors refuses tensors that share storage, and ours may be views
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in snapshot.tensors.items()}
        save_file(tensors, partial / _TENSORS)
        write_atomic(partial / _STATE, json.dumps({"step": snapshot.step, **snapshot.values}).encode())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except (OSError, SafetensorError, StoreError) as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"cannot write a checkpoint to {folder}: {str(problem).splitlines()[0]}",
            why="The run stops here; its last whole checkpoint is kept.",
            fix="free some space and give the same command again: it goes on from that checkpoint",
        ) from problem
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / _STATE).exists()] if folder.exists() else []
    return sorted(found, key=lambda path: (len(path.name), path.name))  # past 8 digits, longer is later


def load_checkpoint(folder: Path) -> Snapshot | None:
    """The newest checkpoint that can be read, or None. A damaged one is passed over for the one before it."""
    for path in reversed(checkpoints(folder)):
        try:
            values = json.loads((path / _STATE).read_text(encoding="utf-8"))
            return Snapshot(values.pop("step"), load_file(path / _TENSORS), values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            continue
    return None


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
