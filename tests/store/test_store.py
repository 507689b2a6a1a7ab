"""store.py: adding, finding, relations, removing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from anytune.errors import StoreError
from anytune.manifests import read_manifest
from anytune.store import Store, folders
from tests.store.conftest import base_manifest, delta_manifest, parent, put, rewrite, writing


def names(place: Path) -> list[str]:
    return sorted(os.listdir(place)) if place.exists() else []


# Opening


def test_opening_a_store_that_does_not_exist_writes_nothing(tmp_path):
    store = Store(tmp_path / "deep" / "store")
    assert store.find() == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_no_store(tmp_path, create):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file", create=create)


def test_a_store_below_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "file" / "store")


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match="not writable"):
        Store(tmp_path / "store")


def test_a_store_that_cannot_be_written_can_still_be_read(store, monkeypatch):
    put(store, delta_manifest())
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    assert len(Store(store.folder, create=False).find()) == 1


def test_opening_what_is_not_there_without_creating_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        Store(tmp_path / "nothing", create=False)


# Adding


def test_an_artefact_is_added_with_hashes_an_id_and_a_safe_name(store):
    manifest = delta_manifest(name="my task/x")
    folder = store.add(manifest, writing(b"abc", "part/weights.bin"))
    entry = store.get(folder)
    assert folder == store.folder / "deltas" / f"my-task-x-{entry.id[:12]}"
    assert len(entry.id) == 64
    assert list(entry.manifest.files) == ["part/weights.bin"]
    assert (manifest.id, manifest.name, manifest.files) == (entry.id, "my-task-x", entry.manifest.files)
    assert (folder / "part" / "weights.bin").read_bytes() == b"abc"
    store.verify(entry)


def test_the_same_artefact_is_not_doubled_even_under_another_name(store):
    first = store.add(delta_manifest(name="one"), writing())
    second = store.add(delta_manifest(name="two"), writing())
    assert first == second
    assert names(store.folder / "deltas") == [first.name]


@pytest.mark.parametrize("change", [{"run": "other"}, {"content": b"other"}, {"kind": "base"}])
def test_another_kind_run_or_content_is_another_artefact(store, change):
    first = store.add(delta_manifest(run="r"), writing())
    manifest = base_manifest(run="r") if "kind" in change else delta_manifest(run=change.get("run", "r"))
    assert store.add(manifest, writing(change.get("content", b"weights"))) != first
    assert len(store.find()) == 2


def test_adding_again_heals_a_damaged_artefact(store):
    folder = store.add(delta_manifest(), writing())
    (folder / "weights.bin").write_bytes(b"wei")
    assert store.add(delta_manifest(), writing()) == folder
    store.verify(store.get(folder))
    assert names(store.folder / "deltas") == [folder.name]


def test_scores_without_weights_are_told_apart_by_their_run(store):
    first = store.add(delta_manifest(form="scores", run="one"), lambda folder: None)
    second = store.add(delta_manifest(form="scores", run="two"), lambda folder: None)
    assert first != second
    with pytest.raises(StoreError, match="neither files nor a run key"):
        store.add(delta_manifest(form="scores"), lambda folder: None)


def test_an_absolute_path_is_refused_before_anything_is_written(store):
    with pytest.raises(StoreError, match=r"recipe\.base"):
        store.add(delta_manifest(recipe={"base": "/home/me/m"}), writing())
    assert names(store.folder) == []


def test_a_link_among_the_files_is_refused(store):
    with pytest.raises(StoreError, match="weights is a link"):
        store.add(delta_manifest(), lambda folder: (folder / "weights").symlink_to("/etc/hostname"))
    assert names(store.folder / "deltas") == []


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (ValueError("bad weights"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), StoreError),
        (SafetensorError("No space left on device"), StoreError),
    ],
)
def test_a_write_that_fails_leaves_no_artefact_and_earlier_ones_whole(store, problem, shown):
    earlier = put(store, delta_manifest(name="earlier"))

    def write(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise problem

    with pytest.raises(shown) as caught:
        store.add(delta_manifest(name="later"), write)
    assert "No space left" in str(caught.value) or shown is not StoreError
    assert names(store.folder / "deltas") == [earlier.reference]
    store.verify(earlier)


def test_a_disk_that_fills_up_at_the_last_moment_leaves_nothing(store, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        store.add(delta_manifest(), writing())
    assert names(store.folder / "deltas") == []


def test_a_folder_that_cannot_be_made_is_a_store_error(store, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(StoreError, match="Read-only"):
        store.add(delta_manifest(), writing())
    with pytest.raises(StoreError, match="Read-only"):
        store.work("key")


#: Processes report that they are ready and begin together, so that they really run at once.
TOGETHER = """
import sys
def wait_for_start():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def run_together(program: str, *arguments: list[str]) -> list[int]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER + program, *arguments_of_one],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments_of_one in arguments
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    return [process.returncode for process in running]


ADDER = """
import os, signal, sys
from pathlib import Path
from anytune.manifests import BaseIdentity, Manifest
from anytune.store import Store
store, first, last, dies = Store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "dies"
def write(folder):
    (folder / "weights.bin").write_bytes(str(index).encode())
    if dies and index == last - 1:
        os.kill(os.getpid(), signal.SIGKILL)
wait_for_start()
for index in range(first, last):
    manifest = Manifest(kind="delta", name=f"{sys.argv[4]}-{index}", base=BaseIdentity(backbone="a" * 64))
    store.add(manifest, write)
"""


def test_a_killed_process_leaves_no_visible_artefact_and_earlier_ones_whole(store):
    assert run_together(ADDER, [str(store.folder), "0", "3", "dies"]) == [-signal.SIGKILL]
    entries = Store(store.folder).find()
    assert [entry.name for entry in entries] == ["dies-0", "dies-1"]
    for entry in entries:
        store.verify(entry)
    assert store.problems() == []
    assert any(name.startswith(".partial-dies-2") for name in names(store.folder / "deltas"))


def test_two_processes_adding_at_once_lose_and_double_nothing(store):
    # Both add 0..39, the same artefacts under different names, and some of their own.
    folder = str(store.folder)
    assert run_together(ADDER, [folder, "0", "50", "one"], [folder, "0", "40", "two"]) == [0, 0]
    entries = store.find()
    assert sorted(int((entry.folder / "weights.bin").read_text()) for entry in entries) == list(range(50))
    assert len(names(store.folder / "deltas")) == 50
    assert store.problems() == []


# Leftovers and work


def test_old_leftovers_go_at_opening_and_young_ones_stay(store):
    folder = put(store, delta_manifest()).folder
    long_ago = time.time() - 2 * folders.LEFTOVER_AGE
    for name in ("old", "young", "busy"):
        partial = folder.parent / f".partial-{name}"
        partial.mkdir()
        (partial / "weights.bin").write_bytes(b"half")
        if name == "old":
            os.utime(partial / "weights.bin", (long_ago, long_ago))
        if name != "young":
            os.utime(partial, (long_ago, long_ago))  # "busy": an old folder with a file still being written
    work = store.work("run")
    (work / ".partial-step").mkdir()
    os.utime(work / ".partial-step", (long_ago, long_ago))
    Store(store.folder)
    assert names(folder.parent) == [".partial-busy", ".partial-young", folder.name]
    assert names(work) == []


def test_a_run_finds_its_work_folder_again_until_it_ends(store):
    folder = store.work("ab" * 32)
    (folder / "step-1").mkdir()
    assert Store(store.folder).work("ab" * 32) == folder
    assert names(folder) == ["step-1"]
    assert store.find() == []
    store.end_work("ab" * 32)
    store.end_work("ab" * 32)
    assert not folder.exists()


def test_a_work_folder_cannot_leave_the_store(store):
    assert store.work("../../x").parent == store.folder / ".work"


# Changing and removing


def test_an_update_adds_to_the_manifest_and_keeps_the_rest(store):
    entry = put(store, delta_manifest(tags={"arm": "fresh"}, notes=["first"]))
    rewrite(entry, invented_later=1)
    changed = store.update(
        entry, scores={"test": {"accuracy": 0.7}}, tags={"upgrade": "v1"}, notes=["second", "first"]
    )
    found = store.get(entry.id)
    assert found == changed
    assert found.manifest.scores == {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.7}}
    assert found.manifest.tags == {"arm": "fresh", "upgrade": "v1"}
    assert found.manifest.notes == ["first", "second"]
    assert found.manifest.model_extra == {"invented_later": 1}
    assert found.id == entry.id
    store.verify(found)


def test_updates_through_a_stale_entry_lose_nothing(store):
    entry = put(store, delta_manifest())
    store.update(entry, scores={"test": {"accuracy": 0.7}})
    store.update(entry, scores={"test": {"macro_f1": 0.6}})
    assert read_manifest(entry.folder).scores["test"] == {"accuracy": 0.7, "macro_f1": 0.6}


UPDATER = """
import sys
from anytune.store import Store
store = Store(sys.argv[1])
entry = store.get(sys.argv[2])
wait_for_start()
for index in range(100):
    store.update(entry, scores={sys.argv[3]: {f"metric{index}": 0.5}})
"""


def test_two_processes_updating_one_manifest_lose_nothing(store):
    entry = put(store, delta_manifest())
    folder = str(store.folder)
    assert run_together(UPDATER, [folder, entry.id, "one"], [folder, entry.id, "two"]) == [0, 0]
    scores = read_manifest(entry.folder).scores
    assert (len(scores["one"]), len(scores["two"])) == (100, 100)


def test_an_update_refuses_an_absolute_path_and_changes_nothing(store):
    entry = put(store, delta_manifest())
    with pytest.raises(StoreError, match="absolute path"):
        store.update(entry, notes=["from /home/me/m"])
    assert read_manifest(entry.folder) == entry.manifest


def test_a_parent_is_not_removed_without_force(store):
    base = put(store, base_manifest())
    delta = put(store, delta_manifest(parents=[parent(base)]))
    with pytest.raises(StoreError, match=f"a parent of 1 other.*{delta.reference}"):
        store.remove(base)
    assert base.folder.exists()
    store.remove(base, force=True)
    assert [entry.name for entry in store.find()] == [delta.name]
    store.remove(delta)
    assert names(store.folder / "deltas") == []


def test_only_what_is_in_the_store_is_removed(store, tmp_path):
    entry = put(store, delta_manifest())
    outside = shutil.copytree(entry.folder, tmp_path / "a" / "deltas" / "outside")
    with pytest.raises(StoreError, match="not in the store"):
        store.remove(store.get(outside))
    assert outside.exists()
