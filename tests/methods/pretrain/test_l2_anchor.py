from __future__ import annotations

import pytest
import torch

from anytune.methods.pretrain.l2_anchor import L2Anchor
from tests.methods.pretrain.little_stream import RATE, Little, close, same, sgd, weights


@pytest.fixture
def little(tiny_base, tiny_domain):
    return lambda **given: Little(tiny_base, tiny_domain, **given)


def shifted(made: Little, by: float = 0.01) -> dict[str, torch.Tensor]:
    """Values beside the model's own, for all of its weights: what another base would have begun with."""
    return {name: value + by for name, value in weights(made.model).items() if name.startswith("bert.")}


def test_decoupled_is_a_pull_beside_a_plain_adamw_without_decay_on_the_backbone(little):
    made, plain = little(), little()
    anchors, backbone, named = weights(plain.model), set(plain.of_backbone()), plain.named()
    head = [named[name] for name in named if name not in backbone]
    optimizer = torch.optim.AdamW([
        {"params": [named[name] for name in backbone], "weight_decay": 0.0},
        {"params": [weight for weight in head if weight.ndim > 1], "weight_decay": 0.1},
        {"params": [weight for weight in head if weight.ndim == 1], "weight_decay": 0.0},
    ], lr=RATE)  # fmt: skip
    for step in range(4):
        optimizer.zero_grad()
        plain.loss(step).backward()
        with torch.no_grad():
            for name in backbone:
                named[name] -= RATE * 20.0 * (named[name] - anchors[name])
        optimizer.step()
    close(made.train([L2Anchor(strength=20.0)]), weights(plain.model))


def test_the_penalty_form_is_the_gradient_of_the_penalty_in_the_loss_to_the_first_base_too(little):
    first = shifted(little())
    made, plain = little(carried={"l2_anchor": {"first": first}}), little()
    named, optimizer = plain.named(), sgd(plain)
    for step in range(4):
        optimizer.zero_grad()
        far = sum((named[name] - first[name]).square().sum() for name in first)
        (plain.loss(step) + 0.3 / 2 * far).backward()
        optimizer.step()
    method = L2Anchor(strength=0.3, to="first", form="penalty")
    close(made.train([method], optimizer=sgd(made)), weights(plain.model))
    assert same(method.carry_state()["first"], first), "it is handed on as it came"


def test_what_a_first_stage_leaves_is_what_it_began_with(little):
    made, method = little(), L2Anchor(to="first")
    before = weights(made.model)
    after = made.train([method])
    left = made.finish(method)["l2_anchor"]["first"]
    assert sorted(left) == sorted(made.of_backbone())
    assert all(torch.equal(left[name], before[name]) and not torch.equal(left[name], after[name]) for name in left)
    assert same(after, little().train([L2Anchor()])), "at a first stage, the stage's beginning is the first base"


def test_to_the_stages_beginning_nothing_is_carried_and_what_is_carried_is_not_read(little):
    made = little(carried={"l2_anchor": {"first": shifted(little())}})
    method = L2Anchor(strength=20.0)
    assert same(made.train([method]), little().train([L2Anchor(strength=20.0)]))
    assert made.finish(method) == {"l2_anchor": {}}


def test_weights_that_came_since_are_anchored_where_they_are_now(little):
    first = shifted(little())
    new = first.popitem()[0]
    made, method = little(carried={"l2_anchor": {"first": first}}), L2Anchor(to="first")
    made.prepared(method)
    left = method.carry_state()["first"]
    assert torch.equal(left[new], made.named()[new])
    assert torch.equal(left[next(iter(first))], first[next(iter(first))])


def test_rounded_anchors_and_those_in_main_memory(little):
    after = {place: little().train([L2Anchor(strength=20.0, anchor=place)]) for place in ("device", "cpu", "bf16")}
    assert same(after["device"], after["cpu"])
    assert not same(after["device"], after["bf16"])
