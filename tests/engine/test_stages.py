from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytune.engine.stages import default_groups, moments, restore_moments, stage_borders
from anytune.errors import MethodError
from anytune.methods.protocol import Stage


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(0, 10_000))
def test_stages_cover_all_steps_without_gap_or_overlap(parts, steps):
    borders = stage_borders([Stage("s", part / sum(parts)) for part in parts], steps)
    assert borders[0][1] == 0
    assert borders[-1][2] == steps
    assert all(left[2] == right[1] for left, right in itertools.pairwise(borders))
    assert all(abs((end - begin) - stage.share * steps) <= 1 for stage, begin, end in borders)


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (1.5, -0.5), (1.0, 0.0), (0.6, 0.6)])
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(MethodError, match="add up to 1"):
        stage_borders([Stage("s", share) for share in shares], 10)


def test_matrices_decay_vectors_do_not_and_frozen_weights_are_in_no_group():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1, bias=False))
    model[2].requires_grad_(False)
    matrices, vectors = default_groups(model, 0.1, 0.01)
    assert (matrices["names"], matrices["weight_decay"]) == (["0.weight"], 0.01)
    assert (vectors["names"], vectors["weight_decay"]) == (["0.bias", "1.weight", "1.bias"], 0.0)
    model[0].weight.requires_grad_(False)
    assert [group["names"] for group in default_groups(model, 0.1, 0.01)] == [["0.bias", "1.weight", "1.bias"]]


@pytest.mark.parametrize("fused", [True, False])
def test_moments_go_back_to_their_parameters_by_name(fused):
    def step(model, optimizer):
        model[0](torch.ones(1, 2)).sum().backward()  # the second layer gets no gradient, so it has no moments
        optimizer.step()

    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3))
        return model, torch.optim.AdamW(default_groups(model, 0.1, 0.01), fused=fused)

    (model, optimizer), (other, fresh) = make(), make()
    step(model, optimizer)
    stored = moments(optimizer)
    assert set(stored) == {"0.weight", "0.bias"}
    other.load_state_dict(model.state_dict())
    restore_moments(fresh, {name: {key: value.clone() for key, value in one.items()} for name, one in stored.items()})
    other[0].weight.grad, other[0].bias.grad = model[0].weight.grad.clone(), model[0].bias.grad.clone()
    step(model, optimizer)
    step(other, fresh)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), other.parameters(), strict=True))


def test_a_fused_optimizer_takes_its_step_counts_beside_the_weights():
    """Torch refuses a fused step whose counts live on another device than the weights; "meta" stands for a GPU."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    for fused, place in ((True, "meta"), (False, "cpu")):
        optimizer = torch.optim.AdamW([{"params": [parameter], "names": ["w"]}])
        optimizer.param_groups[0]["fused"] = fused
        restore_moments(optimizer, {"w": {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}})
        assert optimizer.state[parameter]["step"].device.type == place
        assert optimizer.state[parameter]["exp_avg"].device.type == "meta"
