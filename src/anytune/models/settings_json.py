"""Settings of what stands beside a model's weights, as strict JSON: nothing unknown, nothing left out."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from anytune.errors import SettingsError, unknown


def to_json(settings: Any, version: int) -> str:
    """A dataclass of plain values as JSON text; ``from_json`` gives the values back.

    Args:
        settings: the dataclass.
        version: of its format, written beside the values.
    """
    return json.dumps({"format": version, **asdict(settings)}, indent=1, sort_keys=True) + "\n"


def from_json(kind: type, text: str, version: int, what: str) -> dict[str, Any]:
    """The values of a dataclass from JSON text.

    Args:
        kind: the dataclass.
        version: the format that is read.
        what: "prompt" or the like, for errors.

    Raises:
        SettingsError: it is no JSON object, of another format, lacks a setting, or has an unknown one.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise SettingsError(f"{what} settings are no JSON: {problem}", why="The file is damaged.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{what} settings are a {type(values).__name__}, no object", why="The file is damaged.")
    if values.pop("format", None) != version:
        raise SettingsError(
            f"{what} settings are of another format",
            why=f"This anytune reads format {version}.",
            fix="pip install --upgrade anytune",
        )
    known = [item.name for item in fields(kind)]
    for name in values:
        if name not in known:
            raise unknown(f"{what} setting", name, known, SettingsError)
    missing = [name for name in known if name not in values]
    if missing:
        raise SettingsError(f"{what} settings lack {', '.join(missing)}", why="Every one decides what is computed.")
    return values
