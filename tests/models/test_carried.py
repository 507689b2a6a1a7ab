from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from anytune.errors import BaseError, MethodError
from anytune.models.carried import CARRIED_TENSORS, CARRIED_VALUES, carried_digest, load_carried, save_carried

STATES = {
    "ewc": {"fisher": {"a.weight": torch.rand(2, 3), "b": torch.rand(2)}, "stages": 2},
    "replay": {"blocks": torch.arange(6, dtype=torch.int32).view(2, 3), "seen": 40, "beside": {}},
}


def test_states_come_back_as_they_were(tmp_path):
    save_carried(tmp_path, STATES)
    found = load_carried(tmp_path)
    assert found.keys() == STATES.keys()
    assert found["ewc"]["stages"] == 2
    assert found["replay"]["beside"] == {}
    assert found["replay"]["blocks"].dtype == torch.int32
    assert torch.equal(found["replay"]["blocks"], STATES["replay"]["blocks"])
    assert found["ewc"]["fisher"].keys() == {"a.weight", "b"}
    for name, tensor in STATES["ewc"]["fisher"].items():
        assert torch.equal(found["ewc"]["fisher"][name], tensor)
    assert load_file(tmp_path / CARRIED_TENSORS).keys() == {"ewc/fisher/a.weight", "ewc/fisher/b", "replay/blocks"}


def test_methods_that_leave_nothing_write_nothing(tmp_path):
    save_carried(tmp_path, {"sequential": {}, "lwf": {}})
    assert list(tmp_path.iterdir()) == []
    assert load_carried(tmp_path) == {}
    assert carried_digest(tmp_path) is None
    save_carried(tmp_path, {"slow": {"stages": 1}, "lwf": {}})
    assert [path.name for path in tmp_path.iterdir()] == [CARRIED_VALUES]
    assert load_carried(tmp_path) == {"slow": {"stages": 1}}


def test_the_digest_is_that_of_what_is_carried(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    save_carried(tmp_path / "a", STATES)
    save_carried(tmp_path / "b", dict(reversed(STATES.items())))
    assert carried_digest(tmp_path / "a") == carried_digest(tmp_path / "b")
    changed = {**STATES, "replay": {**STATES["replay"], "blocks": STATES["replay"]["blocks"] + 1}}
    save_carried(tmp_path / "c", changed)
    assert carried_digest(tmp_path / "c") != carried_digest(tmp_path / "a")
    save_carried(tmp_path / "b", {**STATES, "ewc": {**STATES["ewc"], "stages": 3}})
    assert carried_digest(tmp_path / "b") != carried_digest(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CARRIED_VALUES, b"{"),
        (CARRIED_VALUES, b"[1]"),
        (CARRIED_VALUES, b'{"ewc": 3}'),
        (CARRIED_TENSORS, b"short"),
        (CARRIED_TENSORS, b""),
    ],
)
def test_what_is_damaged_is_an_error_that_names_the_folder(name, content, tmp_path):
    save_carried(tmp_path, STATES)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BaseError, match=r"cannot read what .* carries for its next stage") as caught:
        load_carried(tmp_path)
    assert str(tmp_path) in caught.value.what
    assert "\n" not in caught.value.what


def test_tensors_cut_short_are_an_error(tmp_path):
    save_carried(tmp_path, STATES)
    path = tmp_path / CARRIED_TENSORS
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BaseError, match="carries for its next stage"):
        load_carried(tmp_path)


def test_what_is_no_tensor_and_no_json_is_refused(tmp_path):
    with pytest.raises(MethodError, match="holds thing = "):
        save_carried(tmp_path, {"ewc": {"thing": object()}})
    assert list(tmp_path.iterdir()) == []
