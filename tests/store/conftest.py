"""Small artefacts for the tests of the store: a few bytes stand for weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from anytune.manifests import MANIFEST_NAME, BaseIdentity, Manifest, MethodRecord, Parent, TaskRecord
from anytune.store import Entry, Store


def base_manifest(name: str = "v0", digit: str = "a", **fields) -> Manifest:
    return Manifest(kind="base", name=name, base=BaseIdentity(backbone=digit * 64, name=name), **fields)


def delta_manifest(name: str = "hpo-full", digit: str = "a", method: str = "full", score=0.5, **fields) -> Manifest:
    fields.setdefault("task", TaskRecord(name="hpo"))
    fields.setdefault("form", "full")
    return Manifest(
        kind="delta",
        name=name,
        base=BaseIdentity(backbone=digit * 64, name="v0"),
        methods=[MethodRecord(name=method)],
        scores={"validation": {"accuracy": score}},
        **fields,
    )


def writing(content: bytes = b"weights", name: str = "weights.bin"):
    """A ``write`` for ``Store.add`` that puts one file into the folder."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def put(store: Store, manifest: Manifest, content: bytes | None = None) -> Entry:
    """Add an artefact whose content follows from its manifest, and return it as found."""
    folder = store.add(manifest, writing(content or repr(manifest.model_dump(exclude={"id", "files"})).encode()))
    return store.get(folder)


def parent(entry: Entry) -> Parent:
    return Parent(id=entry.id, role=entry.manifest.kind, name=entry.name)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def rewrite(entry: Entry, **fields) -> None:
    (entry.folder / MANIFEST_NAME).write_text(
        Manifest.model_validate({**entry.manifest.model_dump(), **fields}).model_dump_json()
    )
