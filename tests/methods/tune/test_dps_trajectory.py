"""Whole trajectories of DPS, bit for bit: a naive reference's, and plain training's where they must agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from anytune.methods import create
from anytune.methods.mixing import column_mask
from tests.methods.tune.subnetworks import MATRICES, Net, Training, adamw, data, same, sgd


def reference(variant: str, keep: float, length: int, steps: int, freeze: str, clip: float = 0.5) -> dict:
    """DPS as its formula says, in the plainest way: weights as explicit tensors, a full sort, one loop."""
    model = Net()
    optimizer = adamw(model.parameters())
    start = {name: dict(model.named_parameters())[name].detach().clone() for name in MATRICES}
    for step in range(steps):
        weights = dict(model.named_parameters())
        first, selects = step % length == 0, step // length % 2 == 1
        if first and not selects:
            gam = {name: torch.zeros_like(weights[name]) for name in MATRICES}
            fam = {name: torch.zeros(1, weights[name].shape[1]) for name in MATRICES}
        if first and selects:
            snapshot, chosen = {name: weights[name].detach().clone() for name in MATRICES}, {}
            for name in MATRICES:
                often = fam[name].clamp(min=1)
                score = gam[name] / often if variant == "mix" else gam[name]
                if variant == "mix" and length >= 50:
                    score = score * torch.exp(-often / length)
                k = math.ceil(score.numel() * keep)
                chosen[name] = (score >= score.flatten().sort(descending=True).values[k - 1]).float()
        leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        mask = {name: torch.ones(1) for name in MATRICES}
        if selects:
            mask = chosen
        elif variant == "mix":
            mask = {
                name: column_mask(3, step, place, weights[name].shape[1], 1 - keep).view(1, -1)
                for place, name in enumerate(MATRICES)
            }
        if variant == "mix":
            for name in MATRICES:
                anchor = snapshot[name] if selects else start[name]
                leaves[name] = (anchor + mask[name] * (weights[name].detach() - anchor) / keep).requires_grad_()
        words, labels = data(step)
        nn.functional.cross_entropy(functional_call(model, leaves, words), labels).backward()
        for name, weight in weights.items():
            weight.grad = leaves[name].grad * mask.get(name, 1)
        if not selects:
            for name in MATRICES:
                gam[name] = gam[name] + weights[name].grad ** 2
                fam[name] = fam[name] + mask[name]
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        held = [(weights[n], chosen[n] == 0) for n in MATRICES] if selects and freeze == "hard" else []
        before = [[weight.detach().clone(), *moments(optimizer, weight)] for weight, _ in held]
        optimizer.step()
        for (weight, frozen), old in zip(held, before, strict=True):
            for now, was in zip([weight.data, *moments(optimizer, weight, copy=False)], old, strict=True):
                now[frozen] = was[frozen]
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def moments(optimizer, weight, copy=True):
    state = optimizer.state[weight]
    return [state[key].clone() if copy else state[key] for key in ("exp_avg", "exp_avg_sq")]


@pytest.mark.parametrize("freeze", ["hard", "grad"])
@pytest.mark.parametrize(
    ("variant", "length", "steps"), [("dense", 4, 80), ("dense", 60, 240), ("mix", 4, 80), ("mix", 60, 240)]
)
def test_a_trajectory_is_the_reference_bit_for_bit(variant, length, steps, freeze):
    method = create("dps", {"variant": variant, "keep": 0.7, "stage_steps": length, "freeze": freeze})
    training = Training([method], steps=steps).go(steps)
    assert same(training.weights, reference(variant, 0.7, length, steps, freeze))
    assert same(training.finish().state_dict(), training.weights)


@pytest.mark.parametrize("variant", ["dense", "mix"])
def test_the_preset_is_the_published_code_which_does_not_hold_what_it_freezes(variant):
    method = create("dps", {"variant": variant, "keep": 0.7, "stage": 0.05, "preset": "paper_code"})
    training = Training([method], steps=80).go(80)
    assert same(training.weights, reference(variant, 0.7, 4, 80, "grad"))
    assert (method.freeze, method.ties) == ("grad", "threshold")


def test_the_two_ways_to_freeze_and_the_two_variants_are_different_trajectories():
    made = [
        create("dps", {"variant": variant, "freeze": freeze, "stage_steps": 3})
        for variant in ("dense", "mix")
        for freeze in ("hard", "grad")
    ]
    ends = [Training([method]).go(24).weights["first.weight"] for method in made]
    assert len({tuple(end.flatten().tolist()) for end in ends}) == 4


def test_the_frequency_penalty_can_be_turned_on_and_off():
    ends = {}
    for penalty in ("auto", "on", "off"):
        method = create("dps", {"variant": "mix", "stage_steps": 6, "keep": 0.4, "frequency_penalty": penalty})
        ends[penalty] = Training([method]).go(24).weights
    assert same(ends["auto"], ends["off"])
    assert not same(ends["on"], ends["off"])


@pytest.mark.parametrize(
    "made",
    [
        lambda groups: adamw(groups, fused=True), lambda groups: adamw(groups, foreach=True),
        lambda groups: adamw(groups, foreach=False), lambda groups: sgd(groups, momentum=0.9),
    ],
    ids=["fused", "foreach", "for-loop", "sgd"],
)  # fmt: skip
def test_with_keep_1_it_is_the_optimizer_alone_its_state_too(made):
    plain = Training([], optimizer=made).go(12)
    for variant in ("dense", "mix"):
        kept = Training([create("dps", {"variant": variant, "keep": 1.0})], optimizer=made).go(12)
        assert same(plain.weights, kept.weights)
        for name, state in plain.moments().items():
            assert same(state, kept.moments()[name])


@pytest.mark.parametrize(
    "made",
    [lambda groups: adamw(groups, fused=True), lambda groups: adamw(groups, foreach=True), adamw, sgd],
    ids=["fused", "foreach", "default", "sgd"],
)
def test_stage_one_of_dense_is_plain_training(made):
    method = create("dps", {"keep": 0.3, "stage_steps": 5})
    plain, dps = Training([], optimizer=made), Training([method], optimizer=made)
    for _ in range(5):
        plain.step()
        dps.step()
        assert same(plain.weights, dps.weights)
    plain.step()
    dps.step()
    assert not same(plain.weights, dps.weights)


def test_all_holding_of_hard_freezing_is_in_the_held_entries():
    """With nothing to hold, a step in groups gives the bits of a step of everything."""
    method = create("dps", {"keep": 0.999, "stage_steps": 2})
    training, plain = Training([method]).go(4), Training([]).go(4)
    for name in MATRICES:  # ceil leaves every entry in
        assert int((~method._frozen[name]).sum()) == training.weights[name].numel()
    assert same(training.weights, plain.weights)
