"""Commands of a grid share what they tokenise, and share nothing that differs."""

from __future__ import annotations

import torch

import anytune
from anytune.data.tasks import load_task
from anytune.jobs import scoring
from anytune.jobs.scoring import EncodedTask, encodings_kept


def test_inside_equal_tasks_are_tokenised_once_and_outside_each_time(tiny_base, other_base, tiny_task):
    task = load_task(tiny_task)
    base, again = anytune.open_base(tiny_base), anytune.open_base(other_base)  # other weights, the same words
    fresh = EncodedTask.of(task, base, 16)
    assert EncodedTask.of(task, base, 16) is not fresh
    with encodings_kept():
        kept = EncodedTask.of(task, base, 16)
        assert EncodedTask.of(task.subset(seed=0), again, 16) is kept
        shorter, fewer = EncodedTask.of(task, base, 4), task.subset(train_size=8, seed=0)
        assert shorter is not kept
        assert len(EncodedTask.of(fewer, base, 16).train) == 8
        assert EncodedTask.of(task, base, 16) is kept
    assert EncodedTask.of(task, base, 16) is not kept
    for one, other in zip(kept.train.input_ids, fresh.train.input_ids, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_what_was_not_asked_for_longest_is_let_go(tiny_base, tiny_task, monkeypatch):
    task = load_task(tiny_task)
    monkeypatch.setattr(scoring, "TASKS_KEPT", 2)
    base = anytune.open_base(tiny_base)
    with encodings_kept():
        first, second = (EncodedTask.of(task, base, length) for length in (8, 9))
        assert EncodedTask.of(task, base, 8) is first
        EncodedTask.of(task, base, 10)
        assert EncodedTask.of(task, base, 8) is first
        assert EncodedTask.of(task, base, 9) is not second
