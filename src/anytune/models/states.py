"""Nested states as flat tensors and JSON: what checkpoints and carried states are written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anytune.errors import MethodError


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
