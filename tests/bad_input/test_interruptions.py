"""Ctrl-C at the start, in the middle and at the end of a command: one line, nothing half-written, and it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

import anytune
from anytune.store import Store
from tests.bad_input.checks import QUICK, STORE

POINTS = [
    "anytune.jobs.opening.load_base",  # start: the base is opened
    "anytune.jobs.scoring.encode_task",  # texts are tokenised
    "anytune.models.base.Base.task_model",  # the model is made
    "anytune.engine.loop.Loop.prepare",  # middle: before the first step
    "anytune.jobs.keeping.Outcome.evaluate",  # end: the test split is scored
    "anytune.models.delta.FullDelta.save",  # the weights are written
    "anytune.store.store.Store.end_work",  # the artefact stands, the work folder is tidied up
]


@pytest.mark.parametrize("point", POINTS)
def test_ctrl_c_anywhere(cli, tiny_base, tiny_task, monkeypatch, point):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(point, interrupt)
        answer = cli("tune", tiny_base, tiny_task, *QUICK)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert answer.err.count("\n") <= 3, answer.err
    if Path(STORE).exists():
        store = Store(STORE)
        assert len(store.find()) == (1 if "end_work" in point else 0)
        assert not list(store.problems())
    again = cli("tune", tiny_base, tiny_task, *QUICK)
    assert again.code == 0, again.err
    [entry] = Store(STORE).find()
    [undisturbed] = anytune.tune(tiny_base, tiny_task, store="other", training={"steps": 2, "batch_size": 8})
    assert entry.manifest.id == undisturbed.manifest.id
