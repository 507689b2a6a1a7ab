"""Push an artefact to a hub and pull it again: the same files, the same id.

A repository holds one artefact as it stands: a plain PEFT folder, ``delta.safetensors`` or a transformers folder, with
its ``anytune.json``, and as README.md a page made from the manifest. An artefact's own README.md travels beside that
page as README.artefact.md. One commit holds all of it, so a push that is cut short shows nothing.

What is pulled is a stranger's: only known kinds of file are fetched (no pickle, no code), each into a hidden folder;
names, hashes, id and fingerprint are checked before it is adopted.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from anytune.errors import AnytuneError, HubError, StoreError
from anytune.jobs.bases import add_base
from anytune.jobs.hub_client import (
    KNOWN_ENDINGS,
    REPOSITORY,
    WEIGHT_ENDINGS,
    Fetcher,
    download,
    is_known,
    needs_network,
    needs_token,
    parsed,
    quiet_bars,
    trouble,
)
from anytune.jobs.model_card import front_matter, model_card
from anytune.jobs.opening import DEFAULT_STORE, open_base, open_store
from anytune.manifests import (
    MANIFEST_NAME,
    METRICS_NAME,
    SAMPLE_NAME,
    Manifest,
    load_json,
    read_manifest,
    sha256_file,
    write_manifest,
)
from anytune.models.adapters import ADAPTER_FILE, CONFIG_FILE, AdapterDelta
from anytune.models.base import load_base
from anytune.models.delta_file import read_delta
from anytune.models.finding import HUB_ID
from anytune.models.fingerprint import fingerprint_folder
from anytune.models.weights import HYPERPROMPT_TENSORS, INDEX_FILE, SINGLE_FILE
from anytune.store import Entry, Store
from anytune.store.entry import OWN_README, README, stored_as
from anytune.store.folders import scratch_folder
from anytune.store.importing import import_adapter
from anytune.store.names import absolute_paths, is_inside, refuse_absolute_paths
from anytune.store.store import WORK, artefact_id

Source = str | Path

#: texts of a recipe or note that name a file of the machine they were written on
_LOCAL_FILE = re.compile(r"[^\s'\"()]+\.(csv|tsv|jsonl|parquet|txt|conll|yaml|yml|arrow)\b", re.IGNORECASE)


def push(
    reference: Entry | Source,
    repository: str,
    *,
    store: Store | Source | None = None,
    private: bool = False,
    message: str | None = None,
    sample: bool = False,
) -> str:
    """Upload a delta or a base to a hub, in one commit; returns the address of its page.

    Files that an earlier push put there and that this artefact lacks are deleted in the same commit; anything else in
    the repository stays. Licence and other front matter of a page that is there already stay, too.

    Args:
        reference: name, id or folder of the artefact.
        repository: ``owner/name``; made if missing.
        private: make it private. A repository that is public already is refused then.
        message: of the commit.
        sample: also upload the held-out rows beside a delta (texts and labels of its task).

    Raises:
        StoreError: no such artefact, it is damaged, or only its scores were kept.
        HubError: no token, offline, not allowed, or the repository holds something else. Nothing is half there.
    """
    target, revision = parsed(repository)
    if revision is not None:
        raise HubError(f"'{repository}' names a revision", why="A push makes a new one.", fix=target)
    place = _store_around(reference, store)
    entry = reference if isinstance(reference, Entry) else place.get(reference)
    _check_pushable(entry, place)
    needs_network(f"push to {target}")
    needs_token()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="anytune")
    with trouble(target, "push"), quiet_bars():
        api.create_repo(target, private=private or None, exist_ok=True)
        state = api.model_info(target)
    present = sorted(file.rfilename for file in state.siblings or [])
    if private and state.private is False:
        raise HubError(
            f"{target} is public", why="It was there before, and --private would not hide what is pushed.",
            fix="another name, or make it private in its settings first",
        )  # fmt: skip
    earlier = _earlier_files(target, state.sha, present)
    base_repository = _base_repository(entry, place)
    content = _content(entry, target, base_repository, _earlier_page(target, state.sha, present))
    if sample and entry.manifest.sample is not None and (entry.folder / SAMPLE_NAME).is_file():
        content[SAMPLE_NAME] = entry.folder / SAMPLE_NAME
    stale = [name for name in (*earlier, SAMPLE_NAME) if name in present and name not in content]
    operations: list[Any] = [CommitOperationAdd(name, data) for name, data in content.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    summary = message or f"{entry.manifest.kind} {entry.name} ({entry.id[:12]})"
    with trouble(target, "push"), quiet_bars():
        api.create_commit(target, operations, commit_message=summary, parent_commit=state.sha)
    with contextlib.suppress(StoreError):  # a store that is only read
        place.update(entry, tags={"hub": target})
    return f"{api.endpoint}/{target}"


def pull(
    repository: str,
    *,
    store: Store | Source | None = None,
    base: Source | None = None,
    name: str | None = None,
    **options: Any,
) -> Entry:
    """Download an artefact from a hub into the store; returns its entry.

    A repository of anytune gives the artefact it was pushed from, under the same id. A plain PEFT adapter is adopted
    as by ``anytune store import`` and needs ``base``; a plain transformers model becomes a base of the store.

    Args:
        repository: ``owner/name`` or ``owner/name@revision``.
        base: of a plain PEFT adapter: the base it was made on.
        name: in the store; by default the manifest's, else the repository's.
        options: of a plain PEFT adapter: ``task``, ``label_names``, ``metric``, ``tags`` of
            :func:`~anytune.store.importing.import_adapter`.

    Raises:
        HubError: offline, no such repository or revision, not allowed, or it holds what is not taken from a hub
            (pickles, names that lead out of the folder, files that its manifest does not vouch for).
        StoreError, DeltaError, BaseError: its content is damaged or does not fit; nothing is in the store then.
    """
    target, revision = parsed(repository)
    place = open_store(store)
    needs_network(f"pull {target}")
    from huggingface_hub import HfApi

    api = HfApi(library_name="anytune")
    with trouble(repository, "pull"):
        state = api.model_info(target, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in state.siblings or []}
    with _place_to_fetch(place) as folder, _named(target, folder):
        fetch = Fetcher(target, state.sha, folder, sizes)
        if MANIFEST_NAME in sizes:
            if base is not None or options:
                raise HubError(
                    f"{target} brings its own {MANIFEST_NAME}",
                    why="Its base, task and labels are recorded there.",
                    fix=f"anytune pull {repository}",
                )
            entry = _adopt(place, _fetch_artefact(fetch), name)
        elif CONFIG_FILE in sizes:
            entry = _adopt_adapter(place, fetch, base, name or target.rpartition("/")[2], options)
        elif "config.json" in sizes:
            entry = _adopt_model(place, fetch, name or target.rpartition("/")[2])
        else:
            raise HubError(
                f"{target} holds no {MANIFEST_NAME}, {CONFIG_FILE} or config.json",
                why="Only what anytune pushed, PEFT adapters and transformers models are pulled.",
            )
    return place.update(entry, tags={"hub": target}, notes=[f"pulled from {target} at {str(state.sha)[:12]}"])


# Pushing


def _check_pushable(entry: Entry, place: Store) -> None:
    manifest = entry.manifest
    if manifest.form == "scores":
        raise StoreError(
            f"'{entry.reference}' holds scores and no weights", why="There is nothing to load.",
            fix="run it again with --keep weights",
        )  # fmt: skip
    if not manifest.files or not manifest.id:
        raise StoreError(f"the manifest of '{entry.reference}' lists no files", why="Its weights cannot be checked.")
    place.verify(entry)
    refuse_absolute_paths(manifest)
    strange = [name for name in manifest.files if not is_known(name)]
    if strange:
        raise StoreError(
            f"'{entry.reference}' holds {', '.join(strange[:3])}",
            why=f"Only {', '.join(KNOWN_ENDINGS)} and {README} are shared, which hold no code.",
        )
    for name in manifest.files:
        for key, text in absolute_paths(_read_json(entry.folder / name)) if name.endswith(".json") else ():
            if _is_of_this_machine(text):
                raise StoreError(
                    f"{name} of '{entry.reference}' holds a path of this machine: {key} = {text!r}",
                    why="It means nothing elsewhere and tells about you.",
                )


def _content(entry: Entry, target: str, base_repository: str | None, page: str) -> dict[str, Path | bytes]:
    """Name in the repository -> file or bytes."""
    manifest = public(entry.manifest, base_repository)
    content: dict[str, Path | bytes] = {}
    for name in entry.manifest.files:
        own = name == README
        content[OWN_README if own else name] = entry.folder / stored_as(entry, name)
    with tempfile.TemporaryDirectory() as scratch:
        write_manifest(Path(scratch), manifest)
        content[MANIFEST_NAME] = (Path(scratch) / MANIFEST_NAME).read_bytes()
    config = CONFIG_FILE if CONFIG_FILE in manifest.files else "config.json"
    card = model_card(
        manifest, target, base_repository=base_repository, kept=front_matter(page),
        config=_read_json(entry.folder / config) if config in manifest.files else {},
    )  # fmt: skip
    content[README] = card.encode()
    return content


def public(manifest: Manifest, base_repository: str | None = None) -> Manifest:
    """The manifest as it is shared: names of local files in its recipe and notes become placeholders.

    What decides the id (kind, run key, files) is as it was. The base gets the repository it can be had from, where
    it had none.
    """
    notes = [_LOCAL_FILE.sub("a local file", note) for note in manifest.notes]
    changed = manifest.model_copy(update={"recipe": _without_files(manifest.recipe), "notes": notes}, deep=True)
    changed.tags = {key: value for key, value in changed.tags.items() if key != "hub"}
    if manifest.kind == "delta" and base_repository and changed.base.ref is None:
        changed.base.ref = base_repository
    return changed


def _without_files(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_files(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_files(inner, key) for inner in value]
    if not isinstance(value, str) or value.startswith("sample:"):
        return value
    if value.startswith((".", "~", "/")) or "\\" in value or _LOCAL_FILE.fullmatch(value):
        ending = PurePosixPath(value).suffix if _LOCAL_FILE.fullmatch(value) else ""
        return f"{key.upper() or 'LOCAL'}-FILE{ending}"
    return value


def _base_repository(entry: Entry, place: Store) -> str | None:
    """``owner/name`` of the delta's base (of a base: of its parent) on the hub, if it is known to be there."""
    manifest = entry.manifest
    known = [manifest.base.ref] if manifest.kind == "delta" else [manifest.recipe.get("base")]
    for parent in place.parents(entry):
        if parent.manifest.kind == "base":
            known += [parent.manifest.tags.get("hub"), parent.manifest.base.ref]
    for one in known:
        if isinstance(one, str) and REPOSITORY.fullmatch(one.partition("@")[0]) and HUB_ID.fullmatch(one):
            return one.partition("@")[0]
    return None


def _earlier_files(target: str, sha: str | None, present: Iterable[str]) -> list[str]:
    """The files of the artefact that is there now.

    Raises:
        HubError: weights are there that anytune did not push.
    """
    names = list(present)
    if MANIFEST_NAME in names:
        with tempfile.TemporaryDirectory() as scratch:
            path = download(target, MANIFEST_NAME, sha, Path(scratch), "push")
            with contextlib.suppress(StoreError):
                return [OWN_README if name == README else name for name in read_manifest(path.parent).files]
        return []
    foreign = [name for name in names if name.lower().endswith(WEIGHT_ENDINGS)]
    if foreign:
        raise HubError(
            f"{target} holds something else already: {', '.join(foreign[:3])}",
            why="Two models in one repository would be taken for each other.",
            fix="another name",
        )
    return []


def _earlier_page(target: str, sha: str | None, present: Iterable[str]) -> str:
    if README not in present:
        return ""
    with tempfile.TemporaryDirectory() as scratch:
        path = download(target, README, sha, Path(scratch), "push")
        return path.read_text(encoding="utf-8", errors="replace")


# Pulling


def _fetch_artefact(fetch: Fetcher) -> Entry:
    manifest = read_manifest(fetch([MANIFEST_NAME]))
    refuse_absolute_paths(manifest)
    if manifest.form == "scores" or not manifest.files:
        raise HubError(f"{fetch.target} holds no weights", why="Its manifest lists no files.")
    if artefact_id(manifest.kind, manifest.run, manifest.files) != manifest.id:
        raise HubError(
            f"the manifest of {fetch.target} does not have the id it states ({manifest.id[:12]})",
            why="It was changed after it was written.", fix="ask its owner to push it again",
        )  # fmt: skip
    reserved = [name for name in manifest.files if name in (MANIFEST_NAME, METRICS_NAME, SAMPLE_NAME)]
    if reserved:
        raise HubError(f"the manifest of {fetch.target} lists {reserved[0]} as content")
    own = README in manifest.files and OWN_README in fetch.sizes
    fetch([OWN_README if own and name == README else name for name in manifest.files])
    if manifest.sample is not None and SAMPLE_NAME in fetch.sizes:
        fetch([SAMPLE_NAME])
    return Entry(fetch.folder, manifest)


def _adopt(place: Store, found: Entry, name: str | None) -> Entry:
    """A fetched artefact becomes one of the store: hashes, fingerprint and id are checked, then it appears whole."""
    manifest = found.manifest
    place.verify(found)
    _check_fingerprint(found)
    if name:
        manifest.name = name

    def move(folder: Path) -> None:
        for file in manifest.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (found.folder / stored_as(found, file)).rename(folder / file)
        rows = found.folder / SAMPLE_NAME
        if manifest.sample is not None and rows.is_file() and sha256_file(rows) == manifest.sample.sha256:
            rows.rename(folder / SAMPLE_NAME)

    return place.get(place.add(manifest, move))


def _check_fingerprint(found: Entry) -> None:
    """The weights are of the base, or are the base, that the manifest names."""
    manifest, folder = found.manifest, found.folder
    if manifest.kind == "base":
        held = fingerprint_folder(folder, cache=False).backbone
    elif manifest.form == "full":
        held = read_delta(folder).base.backbone
    else:
        AdapterDelta.load(folder)  # PEFT keeps no hash of the base: its numeric probe is asked when it is loaded
        return
    if held != manifest.base.backbone:
        raise HubError(
            f"the weights say {held[:10]}, their manifest says {manifest.base.backbone[:10]}",
            why="They are of another base than the manifest names.",
            fix="ask its owner to push it again",
        )


def _adopt_adapter(place: Store, fetch: Fetcher, base: Source | None, name: str, options: Mapping[str, Any]) -> Entry:
    if ADAPTER_FILE not in fetch.sizes and "adapter_model.bin" in fetch.sizes:
        raise HubError(
            f"{fetch.target} has its weights only as adapter_model.bin",
            why="That is a pickle, which can run any code when opened; anytune reads safetensors only.",
            fix="ask its owner for adapter_model.safetensors",
        )
    wanted = [file for file in (CONFIG_FILE, ADAPTER_FILE, README) if file in fetch.sizes]
    if base is None:
        stated = _read_json(fetch([CONFIG_FILE]) / CONFIG_FILE).get("base_model_name_or_path")
        hint = stated if isinstance(stated, str) and HUB_ID.fullmatch(stated) else "BASE"
        raise HubError(
            f"{fetch.target} is a plain PEFT adapter, which does not say for certain what its base is",
            why=f"It was made on '{stated}'." if stated else "Its config names none.",
            fix=f"anytune pull {fetch.target} --base {hint}",
        )
    opened = open_base(base, place)
    folder = fetch(wanted)
    return import_adapter(place, folder, opened, name=name, **options)


def _adopt_model(place: Store, fetch: Fetcher, name: str) -> Entry:
    names = [file for file in fetch.sizes if is_inside(file) and "/" not in file and is_known(file)]
    names = [file for file in names if not file.endswith(".jsonl") and file != README]
    if not any(file.endswith(".safetensors") for file in names):
        pickled = next((file for file in fetch.sizes if file.lower().endswith(WEIGHT_ENDINGS)), "no weights")
        raise HubError(
            f"{fetch.target} has {pickled} and no safetensors",
            why="Other weight files may be pickles, which can run any code when opened.",
            fix="ask its owner for model.safetensors",
        )
    if SINGLE_FILE in names:  # a second copy of the weights in shards, or in another format's folder, is left
        kept = (SINGLE_FILE, HYPERPROMPT_TENSORS)
        names = [file for file in names if file in kept or not file.endswith((".safetensors", INDEX_FILE))]
    folder = fetch(names)
    return add_base(load_base(folder, name=name, ref=f"{fetch.target}@{fetch.sha}"), store=place, name=name)


# Small things


@contextlib.contextmanager
def _place_to_fetch(place: Store) -> Iterator[Path]:
    """A hidden folder of the store, gone afterwards; what was made to hold it is gone, too, where it stayed empty."""
    outer = [place.folder / WORK / "pull", place.folder / WORK, place.folder]
    made = [folder for folder in outer if not folder.exists()]
    try:
        with scratch_folder(outer[0], "hub") as folder:
            yield folder
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@contextlib.contextmanager
def _named(target: str, folder: Path) -> Iterator[None]:
    """Errors about what was fetched speak of the repository, not of the hidden folder it lay in."""
    try:
        yield
    except HubError:
        raise
    except AnytuneError as problem:
        what, why = (
            said.replace(str(folder), target).replace(folder.name, target) for said in (problem.what, problem.why)
        )
        hidden = folder.name in problem.fix
        fix = f"anytune pull {target}   once more, or ask its owner to push it again" if hidden else problem.fix
        raise type(problem)(what, why=why, fix=fix) from problem


def _is_of_this_machine(text: str) -> bool:
    home = str(Path.home())
    with contextlib.suppress(OSError, ValueError):
        return (len(home) > 1 and home in text) or Path(text).exists()
    return False


def _store_around(reference: Entry | Source, store: Store | Source | None) -> Store:
    """The store given; else the one around the artefact's folder; else the usual one."""
    if store is None:
        folder = reference.folder if isinstance(reference, Entry) else Path(reference)
        if folder.is_dir() and not (Path(DEFAULT_STORE) / "deltas" / folder.name).is_dir():
            return Store(folder.resolve().parent.parent, create=False)
    return open_store(store, create=False)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = load_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
