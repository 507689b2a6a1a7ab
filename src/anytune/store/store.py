"""A store: a folder of bases and deltas, found by reading the manifests beside the weights.

Layout::

    STORE/bases/<name>-<id12>/     a plain transformers folder + anytune.json
    STORE/deltas/<name>-<id12>/    plain PEFT files, or delta.safetensors, + anytune.json
    STORE/.work/<run key>/         checkpoints of runs in progress, and run.json, which says what each is

There is no database to keep in step: a store can be copied, synced or shared, and two processes may add to it at
once. An artefact is content-addressed (its id is a hash over its kind, run and files) and appears whole or not at
all: it is written into a hidden folder beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anytune.errors import StoreError
from anytune.manifests import (
    MANIFEST_NAME,
    BaseIdentity,
    Manifest,
    digest,
    file_hashes,
    read_manifest,
    staged_folder,
    write_manifest,
)
from anytune.store import search
from anytune.store.entry import Entry, check_files, missing_files
from anytune.store.folders import (
    check_place,
    folders_in,
    held,
    locked,
    partial_name,
    refuse_links,
    remove_leftovers,
    scratch_folder,
)
from anytune.store.names import refuse_absolute_paths, slug

PLACES = {"base": "bases", "delta": "deltas"}
WORK = ".work"
#: Seconds between looks whether the process that holds a run's folder is done.
LOOK_SECONDS = 0.5


class Store:
    """A folder of artefacts.

    Args:
        folder: the store; it need not exist yet and is made with the first artefact, so that a command that fails
            early leaves nothing behind.
        create: False to open only what is there (also on a read-only place).

    Raises:
        StoreError: ``folder`` is a file, cannot be written (``create=True``), or does not exist (``create=False``).
    """

    def __init__(self, folder: str | Path, create: bool = True) -> None:
        self.folder = Path(folder)
        check_place(self.folder, create)
        remove_leftovers(self.folder, (*PLACES.values(), WORK, f"{WORK}/*"))

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    # Adding and changing

    def add(self, manifest: Manifest, write: Callable[[Path], None]) -> Path:
        """Add an artefact: ``write(folder)`` puts its files into an empty hidden folder, which then appears whole.

        ``manifest.name`` becomes a slug, ``manifest.files`` and ``manifest.id`` are filled (on the object given,
        too). If the same artefact is already there and intact, its folder is returned and nothing is doubled; if it
        is damaged, this one takes its place.

        Returns:
            The folder of the artefact.

        Raises:
            StoreError: the manifest holds an absolute path, ``write`` left a link or nothing that identifies the
                artefact, or the place cannot be written. What ``write`` raises otherwise passes through. In every
                case nothing is left behind.
        """
        name = slug(manifest.name)
        refuse_absolute_paths(manifest)
        place = self.folder / PLACES[manifest.kind]
        with scratch_folder(place, name) as scratch:
            write(scratch)
            refuse_links(scratch)
            files = file_hashes(scratch)
            if not files and not manifest.run:
                raise StoreError(
                    f"'{name}' has neither files nor a run key",
                    why="An artefact is known by its content; without either, all such would be the same one.",
                    fix="set manifest.run (see manifests.run_key)",
                )
            filled = manifest.model_copy(
                update={"name": name, "files": files, "id": artefact_id(manifest.kind, manifest.run, files)}
            )
            write_manifest(scratch, filled)
            folder = self._publish(scratch, place / f"{name}-{filled.id[:12]}", filled)
        manifest.name, manifest.files, manifest.id = filled.name, filled.files, filled.id
        return folder

    def update(
        self,
        entry: Entry,
        *,
        scores: Mapping[str, Mapping[str, float | None]] | None = None,
        tags: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        decision: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Add scores (by split and metric), tags and notes to a manifest; what is there under other keys stays.

        A ``decision`` takes the place of the one that is there.

        The manifest is read again, changed and replaced atomically; id, files and weights are untouched.
        """
        with locked(entry.folder):
            manifest = read_manifest(entry.folder)
            merged = {split: dict(values) for split, values in manifest.scores.items()}
            for split, values in (scores or {}).items():
                merged.setdefault(split, {}).update(values)
            manifest.scores = merged
            manifest.tags = {**manifest.tags, **(tags or {})}
            manifest.notes = list(dict.fromkeys([*manifest.notes, *notes]))
            manifest.decision = manifest.decision if decision is None else dict(decision)
            refuse_absolute_paths(manifest)
            write_manifest(entry.folder, manifest)
        return Entry(entry.folder, manifest)

    def remove(self, entry: Entry, force: bool = False) -> None:
        """Delete an artefact of this store.

        Raises:
            StoreError: others were made from it (unless ``force``), or it does not stand in this store.
        """
        if entry.folder.resolve().parent.parent != self.folder.resolve():
            raise StoreError(
                f"{entry.folder} is not in the store {self.folder}",
                why="A store deletes only what is its own.",
                fix=f"name the --store that holds '{entry.reference}'",
            )
        children = [] if force else self.children(entry)
        if children:
            raise StoreError(
                f"'{entry.reference}' is a parent of {len(children)} other artefact(s): "
                + ", ".join(child.reference for child in children[:5]),
                why="They could no longer be loaded or explained without it.",
                fix=f"anytune store remove --force {entry.reference}",
            )
        # Renamed first, so that it vanishes whole even if the deletion is cut short.
        doomed = partial_name(entry.folder.parent, entry.folder.name)
        try:
            entry.folder.rename(doomed)
        except OSError as problem:
            raise StoreError(f"cannot remove {entry.folder}: {problem.strerror or problem}") from problem
        shutil.rmtree(doomed, ignore_errors=True)

    # Runs in progress

    def work(self, run_key: str) -> Path:
        """The folder for checkpoints of a run in progress (made if need be); the same run finds it again."""
        folder = self.work_folder(run_key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StoreError(
                f"cannot make {folder}: {problem.strerror or problem}", fix="another --store"
            ) from problem
        return folder

    def work_folder(self, run_key: str) -> Path:
        """Where :meth:`work` makes the folder of a run."""
        return self.folder / WORK / slug(run_key)

    def work_folders(self) -> list[Path]:
        """The folders of all runs in progress, and of those that were interrupted."""
        return folders_in(self.folder / WORK)

    @contextlib.contextmanager
    def at_work(self, run_key: str, busy: Callable[[Path], None]) -> Iterator[Path]:
        """Hold the folder of a run alone, so that no two processes train the same.

        Args:
            busy: called once with the folder if another process holds it; it may raise, else its end is waited for.
        """
        told = False
        while True:
            folder = self.work(run_key)
            with held(folder) as ours:
                if ours:
                    yield folder
                    return
            if not told:
                busy(folder)
                told = True
            time.sleep(LOOK_SECONDS)

    def end_work(self, run_key: str) -> None:
        """Delete the checkpoints of a run whose artefact is in the store; no error if there are none."""
        folder = self.work_folder(run_key)
        doomed = partial_name(folder.parent, folder.name)
        with contextlib.suppress(OSError):
            folder.rename(doomed)  # so that it vanishes whole even if the deletion is cut short
            shutil.rmtree(doomed, ignore_errors=True)

    # Finding

    def find(
        self,
        kind: str | None = None,
        *,
        task: str | None = None,
        base: str | BaseIdentity | None = None,
        method: str | None = None,
        seed: int | None = None,
        tags: Mapping[str, str] | None = None,
        run: str | None = None,
        form: str | None = None,
        score: float | None = None,
    ) -> list[Entry]:
        """Artefacts that fit every filter given, oldest first (then by name).

        Args:
            kind: "base" or "delta".
            task: name of the task, or its content hash.
            base: name, ref or backbone hash (4 digits or more) of the base it belongs to, or a ``BaseIdentity``
                (compared by backbone).
            method: one of its methods, as ``tune/full`` or ``full``.
            seed: seed of the run.
            tags: tags it must have, with these values.
            run: run key.
            form: "full", "peft" or "scores".
            score: at least this good on validation, in the metric of its task (at most this, for an error metric).
        """
        entries = self._entries(kind, run)
        wanted = search.Wanted(
            task=task, base=base, method=method, seed=seed, tags=dict(tags or {}), run=run, form=form
        )
        found = [entry for entry in entries if wanted.fits(entry.manifest)]
        return found if score is None else [entry for entry in found if search.at_least(entry, score)]

    def best(self, entries: Iterable[Entry], split: str = "validation", metric: str | None = None) -> Entry:
        """The entry with the best score; the earliest of equals. See ``search.best``."""
        return search.best(entries, split, metric)

    def get(self, reference: str | Path) -> Entry:
        """One artefact by folder name, plain name, id prefix (4 digits or more), or path (also outside the store).

        Raises:
            StoreError: there is none (near names are suggested) or there are several (what to type is listed).
        """
        if isinstance(reference, Path):
            return Entry(reference, read_manifest(reference))
        text = str(reference).strip()
        entries = self._entries(None)
        found = search.matching(entries, text)
        if len(found) == 1:
            return found[0]
        if found:
            raise search.ambiguous(text, found)
        if text and os.path.isdir(text):  # unlike Path.is_dir, no error for a text that is too long for a name
            return Entry(Path(text), read_manifest(Path(text)))
        raise search.missing(text, entries, self.folder)

    def problems(self) -> list[tuple[Path, str]]:
        """Folders that look like artefacts and cannot be used, with the reason; quick, no file is hashed."""
        problems: list[tuple[Path, str]] = []
        seen: dict[str, Path] = {}
        for folder, result in self._read(None):
            if isinstance(result, StoreError):
                problems.append((folder, str(result)))
                continue
            lacking = missing_files(Entry(folder, result))
            if lacking:
                problems.append((folder, f"missing {', '.join(lacking[:5])}"))
            if result.id in seen:
                problems.append((folder, f"a copy of {seen[result.id].name}"))
            elif result.id:
                seen[result.id] = folder
        return problems

    def verify(self, entry: Entry) -> None:
        """Check every file against the manifest by SHA-256; StoreError names the one that is missing or damaged."""
        check_files(entry)

    # Relations

    def base_of(self, manifest: Manifest) -> Path | None:
        """The folder of the base in this store with the same backbone hash, or None.

        Of several (one may differ in its vocabulary) the one that the manifest names as parent is taken, else the
        one that agrees in most of the other hashes, else the oldest.
        """
        found = search.base_of(manifest, self._entries("base"))
        return found.folder if found else None

    def parents(self, entry: Entry) -> list[Entry]:
        """The artefacts in this store that this one was made from: its named parents, and the base it belongs to."""
        return search.parents(entry, self._entries(None))

    def children(self, entry: Entry) -> list[Entry]:
        """The artefacts in this store that were made from this one."""
        return search.children(entry, self._entries(None))

    def lineage(self, entry: Entry) -> list[Entry]:
        """Ancestors as far as this store knows: nearest first, each once, without ``entry`` itself."""
        return search.lineage(entry, self._entries(None))

    # Inside

    def _read(
        self, kind: str | None, may_be: Callable[[Path], bool] = lambda folder: True
    ) -> Iterator[tuple[Path, Manifest | StoreError]]:
        for place in PLACES.values() if kind is None else (PLACES[kind],) if kind in PLACES else ():
            for folder in filter(may_be, folders_in(self.folder / place)):
                try:
                    yield folder, read_manifest(folder)
                except StoreError as problem:
                    # Removed between listing and reading by another process: no problem of this store.
                    if folder.exists():
                        yield folder, problem

    def _entries(self, kind: str | None, run: str | None = None) -> list[Entry]:
        """All artefacts in order; with ``run`` at least those of that run."""
        read = self._read(kind, _mentioning(run))
        found = [Entry(folder, result) for folder, result in read if isinstance(result, Manifest)]
        found.sort(key=lambda entry: (entry.manifest.created, entry.name, entry.reference))
        # A folder copied by hand is the same artefact: counted once, so that no table weighs a run twice.
        unique = {entry.id or entry.reference: entry for entry in reversed(found)}
        return [entry for entry in found if unique[entry.id or entry.reference] is entry]

    def _publish(self, scratch: Path, final: Path, manifest: Manifest) -> Path:
        with locked(final.parent):
            for folder in final.parent.glob(f"*-{manifest.id[:12]}"):
                try:
                    present = Entry(folder, read_manifest(folder))
                    if present.id != manifest.id:
                        continue
                    check_files(present)
                    return folder
                except StoreError:
                    # Damaged: the fresh copy takes its place.
                    aside = partial_name(folder.parent, folder.name)
                    folder.rename(aside)
                    shutil.rmtree(aside, ignore_errors=True)
            with staged_folder(final) as partial:
                for child in list(scratch.iterdir()):
                    child.rename(partial / child.name)
        return final


def _mentioning(run: str | None) -> Callable[[Path], bool]:
    """Whether a folder's manifest may be that of a run: its key stands somewhere in the file.

    Most of the time of a search goes into checking manifests, and of thousands one is asked for.
    """
    if run is None or not (run.isascii() and run.isalnum()):
        return lambda folder: True
    words = f'"{run}"'.encode()

    def found(folder: Path) -> bool:
        try:
            return words in (folder / MANIFEST_NAME).read_bytes()
        except OSError:
            return False

    return found


def artefact_id(kind: str, run: str, files: Mapping[str, str]) -> str:
    """The id of an artefact: SHA-256 over its kind, run key and the hashes of its files."""
    return digest({"kind": kind, "run": run, "files": dict(files)})
