"""What may stand in a store: names that are safe as folders, and no path of anybody's machine.

Pure functions, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from anytune.errors import StoreError
from anytune.manifests import Manifest

#: Longest slug: with the 13 characters of the id and the prefix of a staged folder it stays far below the 255 bytes
#: that file systems allow for a name.
NAME_LIMIT = 80

_WHOLE_PATH = re.compile(r"(?:/+[^/\s]|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\\w|file:/)")
_PATH_IN_TEXT = re.compile(
    r"(?:^|[\s'\"`=(\[,;<])(?:~?/[^\s/'\"`]+/[^\s/'\"`]|[A-Za-z]:[\\/][^\s/\\]|\\\\\w+\\\w|file:/)"
)


def slug(name: str, limit: int = NAME_LIMIT) -> str:
    """A name that is safe as a folder on every system: ``"my task/v1"`` -> ``"my-task-v1"``.

    ASCII letters, digits, ``.``, ``_`` and ``-`` stay; anything else becomes ``-``. It has no separator, no leading
    dot or hyphen, at most ``limit`` characters, and is never empty.
    """
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return re.sub(r"-{2,}", "-", kept)[: limit + 8].lstrip(".-_")[:limit].rstrip(".-_") or "unnamed"


def is_absolute(text: str) -> bool:
    """Whether a text is, or plainly contains, an absolute path of some machine (POSIX, Windows, home or file URL).

    Web addresses, hub ids, relative paths and a lone ``/`` are not.
    """
    return bool(_WHOLE_PATH.match(text) or _PATH_IN_TEXT.search(text))


def absolute_paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every ``(dotted key, text)`` in a JSON-like value that holds an absolute path.

    Label names are data (``/sports`` is a fine label), so what stands under ``label_names`` is not looked at.
    """
    if isinstance(value, str):
        if is_absolute(value):
            yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name == "label_names":
                continue
            place = f"{key}.{name}" if key else str(name)
            if is_absolute(str(name)):
                yield place, str(name)
            yield from absolute_paths(inner, place)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            if isinstance(inner, int | float):
                continue
            yield from absolute_paths(inner, f"{key}[{index}]")


def refuse_absolute_paths(manifest: Manifest) -> None:
    """Raise StoreError naming the first key of a manifest that holds an absolute path."""
    for key, text in absolute_paths(manifest.model_dump(mode="json")):
        raise StoreError(
            f"the manifest of '{manifest.name}' holds an absolute path: {key} = {text!r}",
            why="Artefacts are copied and shared; a path of one machine means nothing on another and tells about it.",
            fix="a path relative to the recipe, a sample:NAME, or a hub id",
        )


def is_inside(name: str) -> bool:
    """Whether a file name of a manifest stays inside its folder: relative, no ``..``, no drive, no backslash."""
    return bool(
        name
        and "\0" not in name
        and "\\" not in name
        and not PurePosixPath(name).is_absolute()
        and not PureWindowsPath(name).drive
        and ".." not in PurePosixPath(name).parts
    )
