"""Methods that hold on to the base, beside one that holds entries still."""

from __future__ import annotations

import pytest
import torch

from anytune.methods import create
from tests.methods.tune.by_hand import Small, weights


@pytest.mark.parametrize(
    ("name", "settings"),
    [("l2sp", {"strength": 20.0}), ("recadam", {"midpoint_steps": 2, "rate": 0.5, "gamma": 40.0})],
)
@pytest.mark.parametrize("first", [True, False])
def test_held_entries_are_drawn_back_in_either_order(tiny_base, tiny_task, name, settings, first):
    made = Small(tiny_base, tiny_task)
    holding = create("dps", {"keep": 0.3, "stage_steps": 1})
    methods = [create(name, settings), holding] if first else [holding, create(name, settings)]
    start, before = weights(made.model), []
    matrix = "bert.encoder.layer.0.output.dense.weight"
    after = made.train(methods, last=2, clip=None, seen=lambda step: before.append(weights(made.model)[matrix]))
    still = after[matrix] == before[1]
    nearer = (after[matrix] - start[matrix]).abs() < (before[1] - start[matrix]).abs()
    assert still.float().mean() < 0.1
    assert nearer.float().mean() > 0.6
    assert torch.isfinite(after[matrix]).all()


@pytest.mark.parametrize("first", [True, False])
def test_without_a_pull_they_stay(tiny_base, tiny_task, first):
    made = Small(tiny_base, tiny_task)
    holding = create("dps", {"keep": 0.3, "stage_steps": 1})
    methods = [create("rdrop"), holding] if first else [holding, create("rdrop")]
    before = []
    matrix = "bert.encoder.layer.0.output.dense.weight"
    after = made.train(methods, last=2, clip=None, seen=lambda step: before.append(weights(made.model)[matrix]))
    assert abs((after[matrix] == before[1]).float().mean() - 0.7) < 0.01
