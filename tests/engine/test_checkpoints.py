from __future__ import annotations

import errno
import os

import pytest
import torch

from anytune.engine import checkpoints as module
from anytune.engine.checkpoints import (
    Snapshot,
    checkpoints,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from anytune.errors import MethodError, StoreError, TrainingError
from anytune.models.states import join_state, split_state


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, {"model/w": torch.full((3,), float(step))}, {"result": {"best_value": None}})


def test_a_nested_state_comes_back_with_its_types_and_shapes():
    state = {
        "fisher": {"layer.0": torch.arange(6.0).reshape(2, 3), "deep": {"mask": torch.tensor([True, False])}},
        "count": 3, "name": "x", "none": None, "list": [1, 2.5, "a"], "empty": {}, "flag": True,
        "half": torch.tensor(0.1, dtype=torch.bfloat16),
    }  # fmt: skip
    tensors, values = split_state("method.dps", state)
    assert set(tensors) == {"method.dps/fisher/layer.0", "method.dps/fisher/deep/mask", "method.dps/half"}
    back = join_state("method.dps", tensors, values)
    assert back.keys() == state.keys()
    assert {key: back[key] for key in ("count", "name", "none", "list", "empty", "flag")} == {
        key: state[key] for key in ("count", "name", "none", "list", "empty", "flag")
    }
    assert torch.equal(back["fisher"]["layer.0"], state["fisher"]["layer.0"])
    assert torch.equal(back["fisher"]["deep"]["mask"], state["fisher"]["deep"]["mask"])
    assert back["half"].dtype == torch.bfloat16


def test_two_states_in_one_file_do_not_mix():
    first, _ = split_state("method.a", {"x": torch.zeros(1)})
    second, _ = split_state("method.ab", {"x": torch.ones(1)})
    assert join_state("method.a", first | second, {})["x"].item() == 0
    assert set(join_state("method.a", first | second, {})) == {"x"}


def test_a_state_that_could_not_be_written_or_found_again_is_refused():
    with pytest.raises(MethodError, match="a/b"):
        split_state("m", {"a/b": torch.zeros(1)})
    with pytest.raises(MethodError, match="list"):
        split_state("m", {"list": [torch.zeros(1)]})


def test_a_snapshot_with_views_and_shared_storage_comes_back(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(tmp_path, Snapshot(5, {"a": whole.T, "b": whole[1], "c": whole}, {"x": {"y": [1]}}))
    back = load_checkpoint(tmp_path)
    assert (back.step, back.values) == (5, {"x": {"y": [1]}})
    assert torch.equal(back.tensors["a"], whole.T)
    assert torch.equal(back.tensors["b"], whole[1])


def test_only_the_newest_are_kept_in_the_order_of_their_steps(tmp_path):
    for step in (1, 9, 10, 99_999_999, 100_000_000):
        save_checkpoint(tmp_path, snapshot(step), keep=3)
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [10, 99_999_999, 100_000_000]
    assert load_checkpoint(tmp_path).step == 100_000_000


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, snapshot(3))
    save_checkpoint(tmp_path, Snapshot(3, {"model/w": torch.zeros(1)}))
    assert load_checkpoint(tmp_path).tensors["model/w"].shape == (1,)


def test_a_damaged_later_checkpoint_never_pushes_out_those_that_are_made_anew(tmp_path):
    """A run that had to go back writes earlier steps: were the newest by number kept, nothing of it would stay."""
    save_checkpoint(tmp_path, snapshot(400))
    (tmp_path / "step-00000400" / "state.safetensors").write_bytes(b"")
    for step in (100, 200):
        save_checkpoint(tmp_path, snapshot(step), keep=1)
        assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:08d}"]


def test_a_snapshot_is_written_from_where_it_lies(tmp_path, monkeypatch):
    seen = {}
    real = module.save_file
    monkeypatch.setattr(module, "save_file", lambda tensors, path: (seen.update(tensors), real(tensors, path)))
    whole = torch.arange(12.0)
    save_checkpoint(tmp_path, Snapshot(5, {"a": whole, "b": whole[3:5]}))
    assert seen["a"].data_ptr() == whole.data_ptr()
    assert seen["b"].data_ptr() != whole[3:5].data_ptr(), "what shares its storage is copied: safetensors refuses it"


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """Or a power cut leaves a folder with the right name and empty files."""
    order = []
    real_sync, real_rename, real_fsync = module.sync, type(tmp_path).rename, os.fsync
    monkeypatch.setattr(module, "sync", lambda path: (order.append(f"sync {path.name}"), real_sync(path)))
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), real_fsync(handle)))
    monkeypatch.setattr(
        type(tmp_path), "rename", lambda path, to: (order.append(f"rename {path.name}"), real_rename(path, to))[1]
    )
    save_checkpoint(tmp_path, snapshot(3))
    assert order == [
        "sync state.safetensors", "fsync",
        "fsync",  # state.json, by write_atomic
        "sync .partial-step-00000003", "fsync",
        "rename .partial-step-00000003",
        f"sync {tmp_path.name}", "fsync",
    ]  # fmt: skip


DAMAGES = ["truncated", "zeroed", "empty", "no tensors", "no JSON", "other JSON", "no step", "other format"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, snapshot(1))
    newest = save_checkpoint(tmp_path, snapshot(2))
    tensors, values = newest / "state.safetensors", newest / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-3])
    elif damage == "zeroed":
        tensors.write_bytes(tensors.read_bytes()[:-3] + b"\0\0\0")
    elif damage == "empty":
        tensors.write_bytes(b"")
    elif damage == "no tensors":
        tensors.unlink()
    else:
        values.write_text({"no JSON": "{", "other JSON": "[1]", "no step": "{}", "other format": "{}"}[damage])
        if damage == "no step":
            values.write_text('{"format": 2}')
    told = []
    assert load_checkpoint(tmp_path, told.append).step == 1
    assert len(told) == 1
    assert "step-00000002 cannot be used" in told[0]


def test_a_folder_without_checkpoints_gives_none(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step-00000001").mkdir()
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("place", ["tensors", "values"])
def test_a_full_disk_is_a_training_error_and_the_old_checkpoints_stay_whole(tmp_path, monkeypatch, place):
    save_checkpoint(tmp_path, snapshot(1))
    save_checkpoint(tmp_path, snapshot(2))

    def full_while_saving(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_while_writing(path, data):
        raise StoreError(f"cannot write {path}: No space left on device")

    if place == "tensors":
        monkeypatch.setattr(module, "save_file", full_while_saving)
    else:
        monkeypatch.setattr(module, "write_atomic", full_while_writing)
    with pytest.raises(TrainingError, match="No space left on device") as caught:
        save_checkpoint(tmp_path, snapshot(3))
    assert "same command" in caught.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert load_checkpoint(tmp_path).step == 2


def test_the_random_state_comes_back():
    with torch.random.fork_rng(devices=[]):
        device = torch.device("cpu")
        state = random_state(device)
        first = torch.rand(3)
        restore_random_state(state, device)
        assert torch.equal(torch.rand(3), first)
