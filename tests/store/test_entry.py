"""entry.py: are the files still those of the manifest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from anytune.errors import StoreError
from anytune.manifests import MANIFEST_NAME
from anytune.store import Entry
from anytune.store.entry import truncation
from tests.store.conftest import delta_manifest, put


@pytest.fixture
def entry(store) -> Entry:
    weights = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), dtype=np.float32)}
    manifest = delta_manifest()
    return store.get(store.add(manifest, lambda folder: save_file(weights, folder / "delta.safetensors")))


def test_whole_files_pass(store, entry):
    store.verify(entry)


def test_a_missing_file_is_named_with_what_to_do(store, entry):
    (entry.folder / "delta.safetensors").unlink()
    with pytest.raises(StoreError, match=r"delta\.safetensors is missing") as caught:
        store.verify(entry)
    assert f"anytune store remove {entry.reference}" in caught.value.fix


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_truncated_safetensors_file_is_named_as_truncated(store, entry, kept):
    path = entry.folder / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"delta\.safetensors in .* is truncated: \d+ "):
        store.verify(entry)


def test_one_changed_bit_is_seen(store, entry):
    path = entry.folder / "delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"delta\.safetensors .* is damaged"):
        store.verify(entry)


def test_a_file_that_is_no_safetensors_is_left_to_its_hash(tmp_path):
    path = tmp_path / "x.safetensors"
    for header in (b"[]", b"{}", b'{"a": 1}', b"nonsense", b"[" * 5000):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert truncation(path) is None


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "a/../../secret", "C:\\x"])
def test_a_file_name_that_leads_out_of_the_folder_is_refused(store, entry, name):
    content = json.loads((entry.folder / MANIFEST_NAME).read_text())
    content["files"] = {name: "0" * 64}
    (entry.folder / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(StoreError, match="outside its folder"):
        store.verify(store.get(entry.folder))


def test_a_link_in_place_of_a_file_is_refused(store, entry, tmp_path):
    path = entry.folder / "delta.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        store.verify(entry)


def test_a_linked_folder_below_an_artefact_is_refused(store, tmp_path):
    folder = store.add(delta_manifest(), lambda f: ((f / "part").mkdir(), (f / "part" / "w").write_bytes(b"x")))
    (folder / "part").rename(tmp_path / "part")
    (folder / "part").symlink_to(tmp_path / "part")
    with pytest.raises(StoreError, match="is a link"):
        store.verify(store.get(folder))


def test_a_store_behind_a_link_is_as_good_as_any(store, entry, tmp_path):
    (tmp_path / "link").symlink_to(store.folder)
    store.verify(Entry(tmp_path / "link" / "deltas" / entry.reference, entry.manifest))


def test_scores_that_are_missing_or_not_a_number_are_none(store):
    entry = put(store, delta_manifest(score=float("nan")))
    assert entry.score() is None
    assert entry.score("test") is None
    assert put(store, delta_manifest(score=0.25)).score() == 0.25
