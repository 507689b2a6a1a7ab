from __future__ import annotations

import json
import os

import pytest
import torch

from anytune.engine import loop as loop_module
from anytune.engine.checkpoints import newest
from anytune.engine.interrupts import InterruptedRunError
from anytune.errors import TrainingError
from tests.engine.conftest import Points
from tests.reporters import Says


@pytest.fixture
def cut(line, fit, tmp_path):
    """A run that was interrupted at step 10 of 20."""
    with pytest.raises(InterruptedRunError):
        fit(line, 20, work=tmp_path, reporter=Says(10))
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rate": 0.06}, "learning_rate 0.05 -> 0.06"),
        ({"accumulation": 2}, "accumulation 1 -> 2"),
        ({"steps": 30}, "steps 20 -> 30"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_each_is_named(line, fit, cut, changed, named):
    steps = changed.pop("steps", 20)
    with pytest.raises(TrainingError, match="has other settings") as caught:
        fit(line, steps, work=cut, **changed)
    assert caught.value.what.endswith(f"other settings: {named}")
    assert "--restart" in caught.value.fix


def test_a_checkpoint_of_another_precision_is_refused(line, fit, cut):
    state = cut / "step-00000010" / "state.json"
    stored = json.loads(state.read_text())
    stored["run"]["precision"] = "bf16"
    state.write_text(json.dumps(stored))
    with pytest.raises(TrainingError, match="precision bf16 -> fp32"):
        fit(line, 20, work=cut)


def test_settings_that_change_no_result_may_change_on_the_way(line, fit, cut):
    batches = Points()
    fit(line, 20, work=cut, batches=batches, checkpoint_every=4, checkpoints_kept=1)
    assert batches.asked == list(range(10, 20)), "it asks for no batch it has had"
    assert [path.name for path in cut.glob("step-*")] == ["step-00000016"]


def test_other_library_versions_are_said_and_not_refused(line, fit, cut, monkeypatch):
    monkeypatch.setattr(loop_module, "library_versions", lambda: {"torch": "99.0"})
    says = Says()
    fit(line, 20, work=cut, reporter=says)
    assert any("other versions, so bits may differ" in text and "-> 99.0" in text for text in says.said)


def test_a_damaged_newest_checkpoint_is_said_aloud_and_the_one_before_it_ends_in_the_same_bits(line, fit, tmp_path):
    start = {name: tensor.clone() for name, tensor in line.state_dict().items()}
    fit(line, 20)
    ended = {name: tensor.clone() for name, tensor in line.state_dict().items()}
    line.load_state_dict(start)
    with pytest.raises(InterruptedRunError):
        fit(line, 20, work=tmp_path, reporter=Says(10), checkpoint_every=4)
    with (tmp_path / "step-00000010" / "state.safetensors").open("r+b") as handle:
        handle.seek(-4, os.SEEK_END)
        handle.write(b"\xff\xff\xff\xff")
    says, batches = Says(), Points()
    fit(line, 20, work=tmp_path, reporter=says, batches=batches)
    assert batches.asked[0] == 8
    assert any("step-00000010 cannot be used" in text and "damaged" in text for text in says.said)
    assert all(torch.equal(ended[name], tensor) for name, tensor in line.state_dict().items())
    steps = [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 21, 2)), "no line is lost or doubled"


def test_how_far_a_run_has_come_is_read_without_its_tensors(cut, tmp_path):
    (cut / "step-00000010" / "state.safetensors").unlink()
    found = newest(cut)
    assert (found.step, found.steps) == (10, 20)
    assert newest(tmp_path / "nowhere") is None


def test_the_lines_before_a_checkpoint_are_on_the_disk_before_it_is(line, fit, tmp_path, monkeypatch):
    order = []
    real_sync, real_save = loop_module.JsonLines.sync, loop_module.save_checkpoint
    monkeypatch.setattr(loop_module.JsonLines, "sync", lambda self: (order.append("lines"), real_sync(self)))
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda *given: (order.append("checkpoint"), real_save(*given)))
    fit(line, 5, work=tmp_path, checkpoint_every=4)
    assert order == ["lines", "checkpoint"]
