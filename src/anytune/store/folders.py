"""The folders of a store on disk: may they be written, hidden folders in the making, locks, leftovers."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from anytune.errors import StoreError
from anytune.manifests import PARTIAL_PREFIX

#: Half-written folders older than this (seconds) belong to no living run: a writer touches its files all the time.
LEFTOVER_AGE = 3600.0


def check_place(folder: Path, create: bool) -> None:
    """Raise StoreError unless ``folder`` is a folder that can be read and, with ``create``, made and written."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file", why="A store is a folder.", fix="name a folder with --store")
    if not create:
        if not folder.is_dir():
            raise StoreError(
                f"there is no store at {folder}",
                why="Nothing has been tuned or imported into it yet, or the path is another one.",
                fix="name the folder with --store",
            )
        return
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise StoreError(
            f"cannot write the store {folder}: {existing} is {'not writable' if existing.is_dir() else 'a file'}",
            why="Tuned weights are kept there, so this is checked before any training.",
            fix="name a folder you may write to with --store",
        )


def folders_in(place: Path) -> list[Path]:
    """The visible folders in a place, sorted; none if the place does not exist."""
    try:
        return sorted(path for path in place.iterdir() if not path.name.startswith(".") and path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise StoreError(f"cannot read the store {place.parent}: {problem.strerror or problem}") from problem


def partial_name(place: Path, name: str) -> Path:
    """A fresh hidden path in ``place``: never listed, cleaned when old."""
    return place / f"{PARTIAL_PREFIX}{name}-{secrets.token_hex(4)}"


def last_touched(path: Path) -> float:
    """When anything in a folder was last written (seconds since 1970)."""
    inside = path.rglob("*") if path.is_dir() else ()
    return max((file.lstat().st_mtime for file in (path, *inside)), default=0.0)


def refuse_links(folder: Path) -> None:
    """Raise StoreError if anything below ``folder`` is a symbolic link."""
    for file in folder.rglob("*"):
        if file.is_symlink():
            raise StoreError(
                f"{file.relative_to(folder)} is a link",
                why="An artefact holds its own files, so that it can be copied and shared.",
                fix="write a copy of the file",
            )


@contextlib.contextmanager
def scratch_folder(place: Path, name: str) -> Iterator[Path]:
    """A hidden folder to write into before the artefact's id, and so its final name, is known."""
    folder = partial_name(place, name)
    try:
        folder.mkdir(parents=True)
        yield folder
    except (OSError, SafetensorError) as problem:
        # safetensors reports a full disk in its own class of error.
        raise StoreError(
            f"cannot write '{name}' into {place}: {problem}",
            why="Nothing was kept of this artefact; earlier ones are untouched.",
            fix="free some space, or name another --store",
        ) from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on a folder where the system has them (it is freed even if the process is killed).

    Without it (Windows, some network drives) nothing is lost either: renames stay atomic; only the same artefact
    under two names, or two updates of one manifest in the same instant, could cross.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold a folder alone, if nobody else does; yields whether it is ours. Freed even if the process is killed.

    Where the system has no such locks (Windows, some network drives) it is always ours.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its holder has just deleted it
        yield False
        return
    try:
        yield _taken(fcntl, handle, folder)
    finally:
        os.close(handle)


def _taken(fcntl: Any, handle: int, folder: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there
        return True
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:  # what we hold was deleted before we held it
        return False


def in_use(folder: Path) -> bool:
    """Whether another process holds a folder now."""
    with held(folder) as ours:
        return not ours


def remove_leftovers(folder: Path, places: Iterable[str]) -> None:
    """Delete what killed runs left half-written long ago; anything younger may belong to a living run."""
    now = time.time()
    for place in places:
        found: list[Path] = []
        with contextlib.suppress(OSError):  # another process deletes its own while we look: next time, then
            found.extend(folder.glob(f"{place}/{PARTIAL_PREFIX}*"))
        for leftover in found:
            with contextlib.suppress(OSError):
                if now - last_touched(leftover) > LEFTOVER_AGE:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
