"""Synthetic tasks by name: ``synthetic:rule=45,inputs=1,format=pair`` stands where a task's source does.

What they are is said in :mod:`anytune.evaluate.synthetic_tasks`: three knobs, each set by itself, to see what a
measure of transferability looks at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task, load_task
from anytune.errors import SettingsError, unknown
from anytune.evaluate.synthetic_tasks import SyntheticTask

PREFIX = "synthetic:"


def is_synthetic(source: Any) -> bool:
    """Whether a task's source, or that of a mapping, names a synthetic task."""
    found = source.get("source") if isinstance(source, Mapping) else source
    return isinstance(found, str) and found.startswith(PREFIX)


def parse_synthetic(source: str) -> SyntheticTask:
    """The task that ``synthetic:KEY=VALUE,...`` names; knobs that are left out are 0, the format is single.

    Raises:
        SettingsError: an unknown knob, or a value it cannot have.
    """
    known = {field.name: field.type for field in fields(SyntheticTask)}
    given: dict[str, Any] = {}
    for part in filter(None, source.removeprefix(PREFIX).split(",")):
        key, _, value = part.strip().partition("=")
        if key not in known:
            raise unknown(f"knob of '{source}':", key, known, SettingsError)
        try:
            given[key] = value if key == "format" else int(value) if key == "seed" else float(value)
        except ValueError:
            raise SettingsError(
                f"'{source}': {key}={value}", why="It is a number.", fix=f"{PREFIX}rule=45,inputs=1,format=pair"
            ) from None
    return SyntheticTask(**given)


def synthetic_task(source: str, **options: Any) -> Task:
    """A synthetic task with its splits, named by its knobs.

    Args:
        source: ``synthetic:rule=45,inputs=1,format=pair,seed=3``.
        options: of :func:`anytune.data.tasks.load_task`.

    Raises:
        SettingsError: as :func:`parse_synthetic`.
    """
    made = parse_synthetic(source)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / made.name
        place.mkdir()
        for name, text in made.files().items():
            (place / name).write_text(text, encoding="utf-8")
        columns = ["text", "text_pair"] if made.format == "pair" else "text"
        task = load_task(place, **{"text": columns, "label": "label", **options})
    return replace(task, ref=source)
