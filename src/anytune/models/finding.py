"""Finding a base: a folder on this machine, a named sample, or a hub repository (safetensors and JSON only)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from anytune import compat
from anytune.errors import BaseError, nearest

SAMPLE_PREFIX = "sample:"
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?")
#: What is fetched of a hub repository: weights as safetensors, settings, tokenizer. Nothing that could hold code.
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def find_folder(source: str, resolve_sample: Callable[[str], Path] | None) -> tuple[Path, str, str | None]:
    """Where a base lies: (folder, name, ref), with ``ref`` None for a folder.

    Raises:
        BaseError: there is no such folder, sample or hub repository (or the hub is out of reach).
    """
    if source.startswith(SAMPLE_PREFIX):
        sample = source.removeprefix(SAMPLE_PREFIX)
        if resolve_sample is None:
            raise BaseError(f"'{source}' cannot be resolved here", why="No samples are at hand.", fix="give a folder")
        return Path(resolve_sample(sample)), sample, source
    path = Path(source).expanduser()
    if path.is_dir():
        return path, path.resolve().name, None
    if path.is_file():
        raise BaseError(
            f"{path} is a file", why="A base is a folder with config.json and weights.", fix=str(path.parent)
        )
    looks_like_path = source.startswith((".", "/", "~", "\\")) or source.count("/") > 1 or path.parent.is_dir()
    siblings = [item.name for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    if (looks_like_path and source.count("/") != 0) or not HUB_ID.fullmatch(source):
        raise BaseError(
            f"there is no folder '{source}'",
            why="A base is a folder, a hub id (owner/name), or a sample.",
            fix=str(path.parent / near) if near else "--base sample:bert-tiny",
        )
    return _from_hub(source, near), source.split("@")[0].rsplit("/", 1)[-1], source


def _from_hub(hub_id: str, near: str | None) -> Path:
    """The local copy of a hub repository, downloaded where needed: safetensors, JSON and tokenizer files only."""
    from huggingface_hub import snapshot_download

    repository, _, revision = hub_id.partition("@")
    try:
        with compat.quiet_transformers():
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise BaseError(
            f"'{hub_id}' is no folder here and could not be had from the hub: {reason[:200]}",
            why="A base is a folder, a hub id (owner/name), or a sample.",
            fix=near
            or "--base sample:bert-tiny   (needs no network), or a folder; `anytune samples` lists what there is",
        ) from problem
