"""A store struck while it writes: artefacts appear whole or not at all, and the same command ends in the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

import anytune
from anytune import manifests
from anytune.errors import StoreError
from anytune.jobs import keeping
from anytune.jobs.resuming import interrupted_runs
from anytune.models import weights
from anytune.store import Store, folders
from anytune.store import store as store_module
from tests.faults import KILLED, ctrl_c, full_disk, in_child, kill, read_only, strike

TRAINING = {"steps": 4, "batch_size": 8, "max_length": 16, "learning_rate": 1e-3, "precision": "fp32",
            "checkpoint_every": 2, "evaluate_every": 4}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base, tiny_task):
    """A store with one artefact, and what the run of these tests makes where nothing strikes it."""
    folder = tmp_path_factory.mktemp("faults")
    anytune.tune(tiny_base, tiny_task, store=folder / "earlier", training=TRAINING, seeds=[7])
    [entry] = anytune.tune(tiny_base, tiny_task, store=folder / "whole", training=TRAINING)
    return folder, entry.manifest.files


@pytest.fixture
def place(made, tmp_path):
    return shutil.copytree(made[0] / "earlier", tmp_path / "store")


@pytest.fixture
def run(tiny_base, tiny_task, place):
    return lambda: anytune.tune(tiny_base, tiny_task, store=place, training=TRAINING)


def half_the_weights(patch, fault):
    def save(tensors, path, metadata=None, real=weights.save_file):
        real(tensors, path, metadata=metadata)
        with open(path, "r+b") as handle:
            handle.truncate(os.path.getsize(path) // 2)
        fault()

    patch.setattr(weights, "save_file", save)


POINTS = {
    "in the middle of the weights": half_the_weights,
    "before the predictions": lambda patch, fault: strike(patch, keeping, "write_predictions", fault),
    "before the manifest": lambda patch, fault: strike(patch, store_module, "write_manifest", fault),
    "after the manifest": lambda patch, fault: strike(patch, store_module, "write_manifest", fault, after=True),
    "before the rename": lambda patch, fault: strike(patch, Store, "_publish", fault),
    "while its files are moved": lambda patch, fault: patch.setattr(
        store_module, "staged_folder", struck_when_staged(fault)
    ),
    "after the rename": lambda patch, fault: strike(patch, Store, "_publish", fault, after=True),
    "before the work folder goes": lambda patch, fault: strike(patch, Store, "end_work", fault),
    "while the work folder is deleted": lambda patch, fault: strike(patch, store_module.shutil, "rmtree", fault, at=9),
}


def struck_when_staged(fault, real=manifests.staged_folder):
    @contextmanager
    def staged(final):
        with real(final) as partial:
            yield partial
            fault()

    return staged


def assert_sound(place, files=None):
    """Everything listed is whole, the earlier artefact is there, and nothing half-made is listed."""
    store = Store(place, create=False)
    assert store.problems() == []
    entries = store.find()
    assert 7 in [entry.manifest.seed for entry in entries]
    for entry in entries:
        store.verify(entry)
    if files is not None:
        [entry] = [entry for entry in entries if entry.manifest.seed == 0]
        assert entry.manifest.files == files
        assert interrupted_runs(store) == []
        assert store.work_folders() == []


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_the_store_writes_the_same_command_ends_in_the_same_bits(
    point, run, place, made, tmp_path, monkeypatch
):
    def struck():
        POINTS[point](monkeypatch, kill)
        run()

    # the last: rmtree is called so often only where a work folder is deleted
    assert in_child(struck) in ((KILLED, 0) if "deleted" in point else (KILLED,))
    assert_sound(place)
    run()
    assert_sound(place, made[1])


FAULTS = {"full disk": full_disk, "read-only": read_only, "ctrl-c": ctrl_c}
WRITES = [point for point in POINTS if "work folder" not in point and point != "after the rename"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("point", WRITES)
def test_where_the_store_cannot_write_the_error_is_clear_and_nothing_is_left(
    point, fault, run, place, made, monkeypatch
):
    with monkeypatch.context() as patch:
        POINTS[point](patch, FAULTS[fault])
        with pytest.raises(KeyboardInterrupt if fault == "ctrl-c" else StoreError) as caught:
            run()
    if fault != "ctrl-c":
        assert "No space left" in str(caught.value) or "Read-only file system" in str(caught.value)
        assert caught.value.fix
    assert not list((place / "deltas").glob(".partial-*")), "what was half-written is gone"
    assert_sound(place)
    run()
    assert_sound(place, made[1])


@pytest.mark.parametrize("fault", [kill, full_disk], ids=["killed", "full disk"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_struck_while_a_manifest_is_updated_it_is_the_old_one_or_the_new(fault, after, place, monkeypatch):
    def update():
        store = Store(place)
        store.update(store.find()[0], tags={"arm": "new"}, scores={"other": {"accuracy": 0.5}})

    def struck():
        strike(monkeypatch, manifests.os, "fsync", fault, after=after)
        update()

    assert in_child(struck) == (KILLED if fault is kill else 1)
    assert_sound(place)
    assert Store(place).find()[0].manifest.tags == {"arm": "fresh"}
    update()
    assert Store(place).find()[0].manifest.tags == {"arm": "new"}
    assert_sound(place)


@pytest.mark.parametrize("name", ["rename", "rmtree"])
def test_killed_while_an_artefact_is_removed_it_is_there_whole_or_gone(name, run, place, monkeypatch):
    run()

    def remove():
        store = Store(place)
        store.remove(next(entry for entry in store.find() if entry.manifest.seed == 0))

    def struck():
        owner = type(place) if name == "rename" else store_module.shutil
        strike(monkeypatch, owner, name, kill, after=name == "rename")
        remove()

    assert in_child(struck) == KILLED
    assert_sound(place)
    assert [entry.manifest.seed for entry in Store(place).find()] == [7]


def test_what_a_kill_left_half_written_goes_when_it_is_old(run, place, monkeypatch):
    def struck():
        POINTS["before the rename"](monkeypatch, kill)
        run()

    assert in_child(struck) == KILLED
    assert list((place / "deltas").glob(".partial-*"))
    monkeypatch.setattr(folders, "LEFTOVER_AGE", 0.0)
    Store(place)
    assert not list((place / "deltas").glob(".partial-*"))
    assert interrupted_runs(Store(place)), "checkpoints are no leftovers"


def test_a_store_opens_while_another_process_deletes_what_it_is_done_with(place, monkeypatch):
    """The folder is gone between its being listed and being read."""
    (place / ".work" / "run").mkdir(parents=True)
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("run"):
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    Store(place)


# On real disks, where this machine lets us have them


@pytest.fixture
def mounted(tmp_path):
    """``mounted(options)``: a small file system of its own, or a skip where nobody may mount."""
    places = []

    def mount(*words, at):
        at.mkdir(exist_ok=True)
        if subprocess.run(["mount", *words, str(at)], capture_output=True, check=False).returncode != 0:
            pytest.skip("this user may not mount file systems")
        places.append(at)
        return at

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "-l", str(place)], check=False)


QUICK = ("--steps", 4, "--batch-size", 8, "--max-length", 16, "--precision", "fp32", "--quiet")


@pytest.mark.parametrize("more", [(), ("--training", "checkpoint_every=1")], ids=["artefact", "checkpoint"])
def test_a_full_disk_by_the_command_line(more, cli, mounted, tmp_path, tiny_base, tiny_task, place):
    small = mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", at=tmp_path / "small")
    shutil.copytree(place, small / "store")
    filler = small / "filler"
    filler.write_bytes(b"\0" * (shutil.disk_usage(small).free - 24_000))
    words = ("tune", tiny_base, tiny_task, "--store", small / "store", *QUICK, *more)
    ended = cli(*words)
    assert ended.code == 2
    assert "No space left on device" in ended.err
    assert "Traceback" not in ended.err
    assert_sound(small / "store")
    filler.unlink()
    assert cli(*words).code == 0
    assert_sound(small / "store")


def test_a_read_only_disk_by_the_command_line(cli, mounted, tmp_path, tiny_base, tiny_task, place):
    there = mounted("--bind", str(place), at=tmp_path / "there")
    if subprocess.run(["mount", "-o", "remount,ro,bind", str(there)], check=False).returncode != 0:
        pytest.skip("this user may not mount file systems read-only")
    ended = cli("tune", tiny_base, tiny_task, "--store", there, *QUICK)
    assert ended.code == 2
    assert "not writable" in ended.err or "Read-only file system" in ended.err
    assert "Traceback" not in ended.err
    assert_sound(there)
