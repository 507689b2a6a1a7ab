"""Where samples are kept on disk, and the lock that keeps two processes from making the same one at once."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from anytune.errors import SampleError

#: called with one line of plain text whenever something happens that takes time
Progress = Callable[[str], None]
#: a lock is a file; one that has not been touched for this long belongs to a process that was killed
LOCK_WAIT_SECONDS = 1800.0
PARTIAL_PREFIX = ".partial-"


def cache_folder() -> Path:
    """``$ANYTUNE_CACHE``, or ``~/.cache/anytune``. It may be deleted: all in it can be made again."""
    given = os.environ.get("ANYTUNE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "anytune"


def say_nothing(_: str) -> None:
    """The progress callback that is used when none is given."""


@contextlib.contextmanager
def locked(place: Path, progress: Progress = say_nothing) -> Iterator[None]:
    """Hold the lock of ``place`` (a file beside it) against other processes; a killed holder's lock falls free.

    Raises:
        SampleError: the cache cannot be written, or another process has held the lock for half an hour.
    """
    from filelock import FileLock, Timeout

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(place.with_name(f".{place.name}.lock")))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that is making {place.name}")
            lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except Timeout:
        raise SampleError(
            f"{place.name} has been locked by another process for {LOCK_WAIT_SECONDS / 60:.0f} minutes",
            why="Two processes must not write the same sample at once.",
            fix="wait for the other process, or end it",
        ) from None
    except OSError as problem:
        raise _cannot_write(place, problem) from problem
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A folder that appears whole at ``final`` or not at all; call it while holding ``locked(final)``.

    Raises:
        SampleError: the place cannot be written (full disk, read-only); nothing is left behind.
    """
    _sweep(final.parent)
    partial = final.with_name(f"{PARTIAL_PREFIX}{final.name}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if final.exists():  # an older or damaged one, which the caller found wanting
            shutil.rmtree(final)
        partial.rename(final)
    except OSError as problem:
        raise _cannot_write(final, problem) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(folder: Path, older_than: float = 3600.0) -> None:
    """Delete what killed processes left half-written."""
    if folder.is_dir():
        for left in folder.glob(f"{PARTIAL_PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > older_than:
                    shutil.rmtree(left, ignore_errors=True)


def _cannot_write(place: Path, problem: OSError) -> SampleError:
    return SampleError(
        f"cannot write {place}: {problem.strerror or problem}",
        why="Samples are kept in a cache folder.",
        fix="free some space, or set ANYTUNE_CACHE to a folder that can be written",
    )
