"""Presets: a name for several settings of a method at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def take_preset(method: Any, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a method the settings of its ``preset``, each only where it was left at its default.

    Args:
        method: a dataclass with a field ``preset``, a key of ``presets`` or None.
        presets: by name, what each sets.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    for name, value in presets.get(method.preset or "", {}).items():
        if getattr(method, name) == defaults[name]:
            setattr(method, name, value)
