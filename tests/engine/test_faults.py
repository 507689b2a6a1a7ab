"""A run struck at the worst moments of its bookkeeping: the same call ends in the bits of an undisturbed one."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from anytune.engine import checkpoints, progress
from anytune.engine.checkpoints import load_checkpoint
from anytune.engine.loop import Evaluation
from anytune.errors import AnytuneError
from tests.faults import KILLED, ctrl_c, full_disk, in_child, kill, read_only, strike

STEPS = 12


def evaluate(model):
    loss = sum(parameter.square().sum().item() for parameter in model.parameters())
    return Evaluation({"small": -loss}, loss, -loss)


@pytest.fixture
def run(line, fit):
    """``run(work)``: the same run each time; its weights, what it drew afterwards and its log (if it has a folder)."""
    start = {name: tensor.clone() for name, tensor in line.state_dict().items()}

    def run(work=None):
        line.load_state_dict(start)
        fit(line, STEPS, work=work, evaluate=evaluate, evaluate_every=4, checkpoint_every=3, accumulation=2)
        return {name: tensor.clone() for name, tensor in line.state_dict().items()} | {"drawn": fit.drawn}

    return run


def assert_ends_like(run, work, whole, log):
    ended = run(work)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)
    assert lines(work) == log, "no line of the log is lost or doubled"
    assert not list(work.glob(".partial-*"))


def lines(work):
    found = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.fixture
def whole(run, tmp_path):
    ended = run(tmp_path / "whole")
    return ended, lines(tmp_path / "whole")


def half_a_file(fault):
    """Writes the first half of a file of tensors, then the fault comes."""

    def save(tensors, path, real=checkpoints.save_file):
        real(tensors, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        fault()

    return save


def half_a_line(fault):
    """Writes half a line of the log, then the fault comes."""

    class Torn:
        def __init__(self, handle):
            self.handle, self.count = handle, 0

        def write(self, text):
            self.count += 1
            if self.count == 4:
                self.handle.write(text[: len(text) // 2])
                self.handle.flush()
                fault()
            return self.handle.write(text)

        def __getattr__(self, name):
            return getattr(self.handle, name)

    def init(self, path, resume_at=0, real=progress.JsonLines.__init__):
        real(self, path, resume_at)
        self._handle = Torn(self._handle) if self._handle else None

    return init


#: name -> sets the fault; the third checkpoint is struck, so that there are two before it
POINTS = {
    "in the middle of the tensors": lambda patch, fault: patch.setattr(checkpoints, "save_file", half_a_file(fault)),
    "between tensors and JSON": lambda patch, fault: strike(patch, checkpoints, "write_atomic", fault, at=3),
    "after the JSON": lambda patch, fault: strike(patch, checkpoints, "write_atomic", fault, at=3, after=True),
    "before the rename": lambda patch, fault: strike(patch, checkpoints, "sync", fault, at=8),
    "after the rename": lambda patch, fault: strike(patch, checkpoints, "sync", fault, at=9),
    "while the old ones are dropped": lambda patch, fault: strike(patch, checkpoints, "_drop_old", fault, at=3),
    "in a line of the log": lambda patch, fault: patch.setattr(progress.JsonLines, "__init__", half_a_line(fault)),
    "before the log is flushed": lambda patch, fault: strike(patch, progress.os, "fsync", fault, at=3),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_its_bookkeeping_it_ends_in_the_same_bits(point, run, whole, tmp_path, monkeypatch):
    work = tmp_path / "cut"

    def struck():
        POINTS[point](monkeypatch, kill)
        run(work)

    assert in_child(struck) == KILLED
    assert_ends_like(run, work, *whole)


@pytest.mark.parametrize("fault", [full_disk, read_only], ids=["full disk", "read-only"])
@pytest.mark.parametrize("point", [point for point in POINTS if point != "while the old ones are dropped"])
def test_a_disk_that_takes_no_more_is_an_error_and_the_run_ends_in_the_same_bits(
    point, fault, run, whole, tmp_path, monkeypatch
):
    work = tmp_path / "cut"
    with monkeypatch.context() as patch:
        POINTS[point](patch, fault)
        with pytest.raises(AnytuneError, match=r"No space left|Read-only file system") as caught:
            run(work)
    assert caught.value.fix
    assert_ends_like(run, work, *whole)


@pytest.mark.parametrize("point", POINTS)
def test_a_second_ctrl_c_in_its_bookkeeping_ends_in_the_same_bits(point, run, whole, tmp_path, monkeypatch):
    work = tmp_path / "cut"
    with monkeypatch.context() as patch:
        POINTS[point](patch, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            run(work)
    assert_ends_like(run, work, *whole)


@pytest.mark.parametrize("at", [1, 2, 3], ids=["the first", "in the middle", "the last"])
def test_killed_in_an_evaluation_it_ends_in_the_same_bits(at, run, whole, tmp_path, monkeypatch):
    work = tmp_path / "cut"

    def struck():
        strike(monkeypatch, sys.modules[__name__], "evaluate", kill, at=at)
        run(work)

    assert in_child(struck) == KILLED
    assert_ends_like(run, work, *whole)


def test_killed_again_and_again_it_still_arrives(run, whole, tmp_path, monkeypatch):
    work = tmp_path / "cut"
    for point in [*POINTS, *POINTS]:

        def struck(point=point):
            POINTS[point](monkeypatch, kill)
            run(work)

        assert in_child(struck) in (KILLED, 0)
        found = load_checkpoint(work)
        assert found is None or found.step % 3 == 0
    assert_ends_like(run, work, *whole)
