"""What pre-training methods leave with a base for the next stage: ``carried.json`` and ``carried.safetensors``.

A Fisher matrix, a replay buffer, the weights the stream began with: no part of what the base computes, so they enter
no fingerprint, but they decide what the next stage does, so their digest enters its run key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anytune.errors import BaseError
from anytune.manifests import digest, load_json, sha256_file, write_atomic
from anytune.models.states import join_state, split_state
from anytune.models.weights import write_tensors

CARRIED_VALUES, CARRIED_TENSORS = "carried.json", "carried.safetensors"


def save_carried(folder: Path, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the states of methods, by name, beside a base's weights; nothing is written where all are empty.

    Raises:
        MethodError: a state holds something that is no tensor and no JSON.
        StoreError: it cannot be written.
    """
    kept = {name: state for name, state in states.items() if state}
    if not kept:
        return
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, state in kept.items():
        own, values[name] = split_state(name, state)
        tensors |= own
    if tensors:
        write_tensors(folder / CARRIED_TENSORS, tensors, {"format": "pt"})
    write_atomic(folder / CARRIED_VALUES, json.dumps(values, indent=1, sort_keys=True).encode())


def load_carried(folder: Path) -> dict[str, dict[str, Any]]:
    """The states by method name; {} for a base that carries none.

    Raises:
        BaseError: they are damaged.
    """
    if not (folder / CARRIED_VALUES).is_file():
        return {}
    try:
        values = load_json(folder / CARRIED_VALUES)
        if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
            raise ValueError("it is no mapping of methods to states")
        path = folder / CARRIED_TENSORS
        tensors = load_file(path) if path.is_file() else {}
    except (OSError, ValueError, SafetensorError) as problem:
        raise BaseError(
            f"cannot read what {folder} carries for its next stage: {str(problem).splitlines()[0]}",
            why="The method that left it there would go on without what it knew.",
            fix="copy the folder again, or make the base again",
        ) from problem
    return {name: join_state(name, tensors, value) for name, value in values.items()}


def carried_digest(folder: Path) -> str | None:
    """SHA-256 over what a base carries; None if it carries nothing."""
    files = [folder / name for name in (CARRIED_VALUES, CARRIED_TENSORS) if (folder / name).is_file()]
    return digest({file.name: sha256_file(file) for file in files}) if files else None
