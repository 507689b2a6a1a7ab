"""The methods' part of a transformers Trainer's checkpoint: safetensors and JSON beside the Trainer's own files.

A ``TrainerCallback`` loses its state when a run is resumed, and a Trainer's weights file does not know what a method
has put around a model. ``checkpoint-N/method_state.safetensors`` and ``.json`` hold what is trained (and every buffer)
by its name in the prepared model, and each method's own state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anytune.errors import MethodError, TrainingError
from anytune.manifests import write_atomic
from anytune.methods.protocol import Method
from anytune.methods.step import trainable
from anytune.models.states import join_state, split_state
from anytune.models.weights import write_tensors

TENSORS_NAME = "method_state.safetensors"
VALUES_NAME = "method_state.json"


def save_method_state(folder: Path, model: nn.Module, methods: Sequence[Method]) -> None:
    """Write the two files into a checkpoint's folder, the JSON last.

    Raises:
        StoreError: they cannot be written.
    """
    parts = {"model": _weights(model), **{f"method.{method.name}": method.state_dict() for method in methods}}
    tensors: dict[str, Tensor] = {}
    values = {}
    for prefix, state in parts.items():
        inner, values[prefix] = split_state(prefix, state)
        tensors |= inner
    write_tensors(folder / TENSORS_NAME, tensors, {"format": "pt"})
    write_atomic(folder / VALUES_NAME, json.dumps(values).encode())


@torch.no_grad()
def load_method_state(folder: Path, model: nn.Module | None, methods: Sequence[Method]) -> None:
    """Put weights and methods back as they were.

    Args:
        folder: ``checkpoint-N``.
        model: as ``prepare`` gave it; None only looks whether the checkpoint fits.
        methods: those of the run; an empty list leaves their state as it is.

    Raises:
        TrainingError: the files are missing or damaged, or belong to other methods.
    """
    try:
        values = json.loads((folder / VALUES_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS_NAME)
    except (OSError, ValueError, SafetensorError) as problem:
        raise TrainingError(
            f"{folder} has no methods' state that can be read: {str(problem).splitlines()[0]}",
            why="It was cut while being written, or was made by a Trainer without methods.",
            fix="an earlier checkpoint, or train() from the start",
        ) from problem
    stored = [key.removeprefix("method.") for key in values if key.startswith("method.")]
    if methods and stored != [method.name for method in methods]:
        raise TrainingError(
            f"{folder} was made with {'+'.join(stored) or 'no method'}, this run has "
            f"{'+'.join(method.name for method in methods)}",
            why="Their state would be lost.",
            fix="the same methods, or train() from the start",
        )
    if model is None:
        return
    weights, mine = join_state("model", tensors, {}), _weights(model)
    if weights.keys() != mine.keys():
        changed = sorted(weights.keys() ^ mine.keys())
        raise MethodError(f"{folder} holds other trained weights than this model has: {changed[:3]}")
    for name, tensor in mine.items():
        tensor.copy_(weights[name])
    for method in methods:
        key = f"method.{method.name}"
        method.load_state_dict(join_state(key, tensors, values[key]))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What can change in training: trainable parameters and every buffer."""
    return {**trainable(model), **dict(model.named_buffers())}
