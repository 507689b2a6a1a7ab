"""Go on with a run or begin it anew: between a job and the work folders of a store.

The folder of a run in progress is named by its run key, so the same command finds it again. It holds the run's
checkpoints, its log, and ``run.json``: what decides the run, in words a reader knows.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from anytune.engine.checkpoints import drop_checkpoints, newest
from anytune.engine.progress import Reporter
from anytune.engine.runtime import Runtime
from anytune.engine.settings import differences
from anytune.errors import SettingsError, StoreError, TrainingError, nearest
from anytune.manifests import digest, run_key, write_atomic
from anytune.store import Entry, Store
from anytune.store.folders import in_use

#: "auto": go on if the same run was begun before; "must": an error if it was not; "never": begin at step 0.
Resume = Literal["auto", "must", "never"]
RESUME: tuple[Resume, ...] = ("auto", "must", "never")
RUN_NAME = "run.json"


@dataclass(frozen=True)
class RunIdentity:
    """What decides a run's result, and how a reader calls it.

    Attributes:
        decides: what is hashed into the run key.
        names: for keys of ``decides`` that are hashes (a base, a task): the name that stands for it.
        title: what the run is called in messages: ``"tune hpo seed 0"``.
    """

    decides: Mapping[str, Any]
    names: Mapping[str, str]
    title: str

    @cached_property
    def key(self) -> str:
        """The run key."""
        return run_key(**self.decides)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the run as flat pairs for readers: ``{"base": "v1 (3fa9...)", "seed": 0, ...}``."""
        shown: dict[str, Any] = {}
        for key, value in self.decides.items():
            if key == "training":
                shown |= value
            elif key == "methods":
                shown["method"] = "+".join(record["name"] for record in value)
                shown |= {
                    f"{record['name'].rpartition('/')[2]}.{setting}": chosen
                    for record in value
                    for setting, chosen in record["settings"].items()
                }
            elif value is None or key not in self.names:
                shown[key] = value
            else:
                shown[key] = f"{self.names[key]} ({digest(value)[:8]})"
        return shown


@dataclass(frozen=True)
class InterruptedRun:
    """A run that was begun and has not ended, as its work folder tells."""

    key: str
    folder: Path
    title: str
    #: see :attr:`RunIdentity.settings`; empty where ``run.json`` is missing
    settings: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    steps: int | None = None
    #: when its newest checkpoint was written, or the run was begun if there is none (seconds since 1970)
    touched: float = 0.0
    #: whether a process is at work on it now
    running: bool = False

    @property
    def place(self) -> str:
        """``"step 300 of 1000"``."""
        return f"step {self.step}" + (f" of {self.steps}" if self.steps is not None else "")

    @property
    def age(self) -> str:
        """How long ago it was last touched: ``"2 min"``."""
        return _span(time.time() - self.touched)


def check_resume(resume: str) -> Resume:
    """The value, if it is one of :data:`RESUME`.

    Raises:
        SettingsError: it is not.
    """
    for known in RESUME:
        if resume == known:
            return known
    raise SettingsError(
        f"resume = {resume!r}",
        why="auto: go on if the same run was begun before; must: an error if it was not; never: begin at step 0.",
        fix=f"resume={nearest(str(resume), RESUME) or 'auto'}",
    )


def interrupted_runs(store: Store) -> list[InterruptedRun]:
    """The runs that were begun in a store and have not ended, the one last touched first; loads no tensors."""
    found = []
    for folder in store.work_folders():
        if not store.find(run=folder.name):  # few are at work where thousands have ended: one search for each
            with suppress(OSError):  # it ended while we looked
                found.append(_run(folder, _stored(folder), in_use(folder)))
    return sorted(found, key=lambda run: run.touched, reverse=True)


def forget(store: Store, key: str) -> InterruptedRun:
    """Delete the work folder of an interrupted run, named by the first digits of its key.

    Raises:
        StoreError: there is none, there are several, or a process is at work on it.
    """
    runs = interrupted_runs(store)
    found = [run for run in runs if key and run.key.startswith(key)]
    if len(found) != 1:
        raise StoreError(
            f"{len(found) or 'no'} interrupted run{'s' if len(found) > 1 else ''} with a key that begins with '{key}'",
            why=f"There are: {', '.join(run.key[:12] for run in runs) or 'none'}.",
            fix=f"anytune store work --store {store.folder}",
        )
    if found[0].running:
        raise StoreError(f"a process is at work on '{found[0].title}'", fix="stop it first")
    store.end_work(found[0].key)
    return found[0]


def insist(store: Store, kind: str, identities: Sequence[RunIdentity]) -> None:
    """``resume="must"``: at least one of a command's runs must have been begun before (or be finished).

    Raises:
        TrainingError: none was; names the nearest interrupted run and each setting that differs.
    """
    for identity in identities:
        if store.find(kind, run=identity.key) or store.work_folder(identity.key).is_dir():
            return
    wanted = identities[0]
    others = [run for run in interrupted_runs(store) if run.settings.get("job") == wanted.decides.get("job")]
    if not others:
        raise TrainingError(
            f"{wanted.title}: there is no interrupted run to go on with in {store.folder}",
            why="--resume (resume='must') insists on one.",
            fix="leave it out to start a new run, or name the --store of the interrupted one",
        )
    run, identity = min(
        ((run, identity) for run in others for identity in identities),
        key=lambda pair: len(differences(pair[0].settings, pair[1].settings)),
    )
    changed = differences(run.settings, identity.settings)
    raise TrainingError(
        f"{identity.title}: no interrupted run has these settings; the nearest, at {run.place}, differs in "
        + ", ".join(changed),
        why="Going on with other settings would give weights that belong to neither run.",
        fix="the settings on the left to go on with it, or leave out --resume (resume='must') to start a new run",
    )


def once(
    store: Store,
    kind: str,
    identity: RunIdentity,
    make: Callable[[Path], Entry],
    *,
    resume: Resume = "auto",
    reporter: Reporter,
    runtime: Runtime | None = None,
) -> Entry:
    """The finished artefact of a run; if there is none, what ``make(work folder)`` makes, in one process at a time.

    A process that finds another one at work on the same run says so and waits for it. What ``make`` is about to do
    (go on at step N, begin beside a run that differs in a setting) is said before it is called.

    Args:
        runtime: where several processes of one launcher share the run: process 0 decides and holds the folder for
            all of them, ``make`` is called in each, and each gets the artefact.

    Raises:
        TrainingError: the work folder belongs to another run, or one of several processes of a launcher finds a run
            that others are at work on.
    """

    def first(function: Callable[[], Entry | None]) -> Entry | None:
        return runtime.first(function) if runtime is not None else function()

    def busy(folder: Path) -> None:
        _busy(identity, folder, reporter, runtime.world if runtime is not None else 1)

    with ExitStack() as holding:

        def finished() -> Entry | None:
            """The artefact; if there is none, the work folder is held and the run can begin."""
            found = store.find(kind, run=identity.key)
            if not found or store.work_folder(identity.key).exists():  # of a finished run: killed before tidying up
                folder = holding.enter_context(store.at_work(identity.key, busy))
                found = store.find(kind, run=identity.key)
                if not found:
                    _begin(store, identity, folder, resume, reporter)
                    return None
                store.end_work(identity.key)
            return found[-1]

        fresh = not store.folder.exists()
        entry = first(finished)
        if entry is None:
            try:
                entry = make(store.work_folder(identity.key))
            except BaseException:
                if runtime is None or runtime.rank == 0:
                    _leave(store, identity.key, fresh)
                raise
            first(lambda: store.end_work(identity.key))
    return entry


def _leave(store: Store, key: str, fresh: bool) -> None:
    """Of a run that failed before its first checkpoint, leave nothing behind."""
    folder = store.work_folder(key)
    if newest(folder) is not None:
        return
    store.end_work(key)
    with suppress(OSError):  # other runs are in work, or it holds artefacts
        folder.parent.rmdir()
        if fresh:
            store.folder.rmdir()


def _begin(store: Store, identity: RunIdentity, folder: Path, resume: Resume, reporter: Reporter) -> None:
    """Check whose folder it is, say where the run begins, and write ``run.json``."""
    stored = _stored(folder)
    decides = json.loads(json.dumps(identity.decides))
    if stored and stored.get("decides") != decides:
        changed = differences(stored.get("settings", {}), json.loads(json.dumps(identity.settings)))
        raise TrainingError(
            f"{identity.title}: the work folder {folder.name[:12]} belongs to another run"
            + (f": {', '.join(changed)}" if changed else ""),
            why="Its checkpoints are of other weights.",
            fix=f"anytune store work --remove {folder.name[:12]} --store {store.folder}",
        )
    if resume == "never":
        drop_checkpoints(folder)
    last = newest(folder)
    if last is not None:
        run = _run(folder, stored, False)
        reporter.say(f"{identity.title}: going on at {run.place} (checkpoint {run.age} old)")
    elif not stored and len(store.work_folders()) > 1:  # else there is no other one, and no manifest need be read
        for run in interrupted_runs(store):
            if not run.running and _alike(run.settings, identity.settings):
                differing = ", ".join(differences(run.settings, identity.settings))
                reporter.say(f"{run.title}: interrupted at {run.place} and differs in {differing}; this is a new run")
                break
    elif resume == "must":
        reporter.say(f"{identity.title}: begun before and has no checkpoint yet, so it begins at step 0")
    begun = stored.get("begun") or datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "key": identity.key, "title": identity.title, "begun": begun, "settings": identity.settings,
        "decides": identity.decides, "process": {"id": os.getpid(), "since": time.time()},
    }  # fmt: skip
    write_atomic(folder / RUN_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs are the same job on the same base and data with the same seed, and differ elsewhere."""
    return bool(one) and all(
        one.get(key) == other.get(key) for key in ("job", "base", "task", "domain", "outdated", "seed")
    )


def _busy(identity: RunIdentity, folder: Path, reporter: Reporter, world: int) -> None:
    process = _stored(folder).get("process", {})
    since = _span(time.time() - process["since"]) if "since" in process else "some time"
    said = f"{identity.title}: another process ({process.get('id', 'unknown')}) has been at work on it for {since}"
    if world > 1:
        raise TrainingError(
            said,
            why="Several processes of one launcher cannot wait for it without waiting for each other.",
            fix="the same command again when it is done",
        )
    reporter.say(f"{said}; waiting for its result (Ctrl-C to leave)")


def _stored(folder: Path) -> dict[str, Any]:
    """The content of ``run.json``; {} if there is none or it is damaged."""
    try:
        content = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _run(folder: Path, stored: Mapping[str, Any], running: bool) -> InterruptedRun:
    last = newest(folder)
    settings, title = stored.get("settings"), stored.get("title")
    return InterruptedRun(
        key=folder.name,
        folder=folder,
        title=title if isinstance(title, str) else folder.name[:12],
        settings=settings if isinstance(settings, dict) else {},
        step=last.step if last else 0,
        steps=last.steps if last else None,
        touched=last.saved if last else folder.stat().st_mtime,
        running=running,
    )


def _span(seconds: float) -> str:
    """``"2 min"``: a span of time in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
