"""Runs that diverge among others: the others go on, and the failure is stored, so that no mean leaves it out.

A command of one run ends with the error, and nothing is stored. Of a command of several, a run whose loss or weights
are not finite is stored without weights: form "scores", no score on any split, and in ``failed`` what happened. The
same command finds it again, as it would find a finished run; ``resume="never"`` makes it once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from anytune.errors import DivergedError
from anytune.manifests import Manifest
from anytune.store import Entry, Store

_KEPT: ContextVar[bool] = ContextVar("failures_kept", default=False)


@contextmanager
def failures_kept() -> Iterator[None]:
    """Inside, a command of one run is one of several: that it diverged is stored and no error."""
    before = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(before)


def are_kept() -> bool:
    """Whether a single run that diverges is stored."""
    return _KEPT.get()


def keep_failure(store: Store, manifest: Manifest, what: str) -> Entry:
    """Store that a run diverged; ``manifest`` is what was known of it before, ``what`` what happened."""
    metric = manifest.task.metric if manifest.task else "accuracy"
    manifest.failed = what
    manifest.scores = {"validation": {metric: None}, "test": {metric: None}}
    manifest.notes = [*manifest.notes, f"failed: {what}"]
    return Entry(store.add(manifest, lambda _: None), manifest)


def drop_failures(store: Store, keys: Sequence[str]) -> None:
    """Forget the failures among runs of these keys, so that they are made again."""
    wanted = set(keys)
    for entry in store.find("delta"):
        if entry.manifest.run in wanted and entry.manifest.failed:
            store.remove(entry)


def refuse_all_failed(entries: Sequence[Entry]) -> None:
    """The error of the first run, if every run of a command diverged.

    Raises:
        DivergedError: they did.
    """
    if entries and not are_kept() and all(entry.manifest.failed for entry in entries):
        seeds = ", ".join(str(entry.manifest.seed) for entry in entries)
        raise DivergedError(
            entries[0].manifest.failed or "",
            why="The weights are no longer usable." if len(entries) == 1 else f"So it was with all seeds: {seeds}.",
            fix="a lower learning rate, or precision=fp32",
        )
