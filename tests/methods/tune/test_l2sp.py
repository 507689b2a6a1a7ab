from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import create
from anytune.methods.springs import pull
from anytune.methods.tune.l2sp import L2SP
from tests.methods.tune.by_hand import RATE, InParts, Small, close, same, sgd, weights


@pytest.fixture
def small(tiny_base, tiny_task):
    return lambda **given: Small(tiny_base, tiny_task, **given)


def test_a_pull_goes_its_share_of_the_way_and_never_past_the_anchor():
    for share, expected in ((0.0, 3.0), (0.25, 2.5), (1.0, 1.0), (7.0, 1.0)):
        weight = torch.tensor([3.0])
        pull([weight], [torch.tensor([1.0])], share)
        assert weight.item() == expected
    pull([], [], 0.5)


def test_decoupled_is_a_pull_of_rate_times_strength_beside_a_plain_adamw_without_decay(small):
    made, plain = small(double=True), small(double=True)
    anchors, base = weights(plain.model), set(plain.of_base())
    named = plain.named()
    groups = [
        {"params": [named[name] for name in named if choose(name, named)], "names": [], "lr": RATE, "weight_decay": wd}
        for wd, choose in (
            (0.0, lambda name, named: name in base),
            (0.1, lambda name, named: name not in base and named[name].ndim > 1),
            (0.0, lambda name, named: name not in base and named[name].ndim == 1),
        )
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    for step in range(4):
        optimizer.zero_grad()
        plain.loss(step).backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        with torch.no_grad():
            for name in base:
                named[name] -= RATE * 20.0 * (named[name] - anchors[name])
        optimizer.step()
    close(made.train([L2SP(strength=20.0)]), weights(plain.model))


def test_the_penalty_form_is_the_gradient_of_the_penalty_in_the_loss(small):
    made, plain = small(double=True), small(double=True)
    anchors, base, named = weights(plain.model), set(plain.of_base()), plain.named()
    optimizer = sgd(plain)
    for step in range(4):
        optimizer.zero_grad()
        far = sum((named[name] - anchors[name]).square().sum() for name in base)
        (plain.loss(step) + 0.3 / 2 * far).backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 0.5)
        optimizer.step()
    close(made.train([L2SP(strength=0.3, form="penalty")], optimizer=sgd(made), clip=0.5), weights(plain.model))


def test_a_strong_pull_keeps_the_base_near_and_leaves_the_head_free(small):
    start = weights(small().model)

    def moved(strength):
        made = small()
        after = made.train([L2SP(strength=strength)])
        far = {name: (after[name] - start[name]).norm().item() for name in after}
        return [sum(far[name] for name in part) for part in (made.of_base(), made.head_names)]

    (free, head), (held, head_then) = moved(0.0), moved(80.0)
    assert held < 0.6 * free
    assert head_then > 0.8 * head


def test_it_stands_in_for_weight_decay_on_the_base_and_the_head_has_its_own(small):
    def decays(**settings):
        made = small()
        made.train([L2SP(**settings)], last=1)
        groups = made.optimizer.param_groups
        assert sorted(name for group in groups for name in group["names"]) == sorted(made.named())
        return {name: group["weight_decay"] for group in groups for name in group["names"]}

    matrix, bias = "bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.0.output.dense.bias"
    replaced, own, plain = decays(), decays(head_decay=0.7), decays(strength=0.0)
    assert [replaced[name] for name in (matrix, bias, "classifier.weight")] == [0.0, 0.0, 0.1]
    assert [own[name] for name in (matrix, "classifier.weight", "classifier.bias")] == [0.0, 0.7, 0.0]
    assert [plain[name] for name in (matrix, bias, "classifier.weight")] == [0.1, 0.0, 0.1]
    alone = decays(strength=0.0, head_decay=0.7)
    assert [alone[name] for name in (matrix, "classifier.weight")] == [0.1, 0.7]


def test_anchors_in_main_memory_give_the_same_bits_and_rounded_ones_others(small):
    after = {place: small().train([L2SP(strength=20.0, anchor=place)]) for place in ("device", "cpu", "bf16")}
    assert same(after["device"], after["cpu"])
    assert not same(after["device"], after["bf16"])


@pytest.mark.parametrize("first", [True, False])
def test_each_weight_is_drawn_back_once_where_a_method_makes_the_step_in_parts(small, first):
    whole = small().train([L2SP(strength=20.0)])
    methods = [L2SP(strength=20.0), InParts()]
    parts = small().train(methods if first else methods[::-1])
    assert same(whole, parts)


@pytest.mark.parametrize("order", [("lora", "l2sp"), ("l2sp", "lora")])
def test_with_an_adapter_it_would_do_nothing_and_that_is_an_error(small, order):
    with pytest.raises(MethodError, match=r"l2sp (found no weight of the base|finds none of its weights)"):
        small().train([create(name) for name in order])


def test_beside_child_tuning_masked_entries_feel_the_pull_alone(small):
    """With plain SGD an entry that is masked from the beginning has nothing that moves it off its anchor."""
    made = small()
    start = weights(made.model)
    child = create("child_tuning", {"variant": "D", "keep": 0.3})
    after = made.train([L2SP(strength=0.5), child], optimizer=sgd(made))
    alone = small()
    without = alone.train([create("child_tuning", {"variant": "D", "keep": 0.3})], optimizer=sgd(alone))
    for name, mask in child._masks.items():
        assert torch.equal(after[name][~mask], start[name][~mask])
    name = "bert.encoder.layer.0.output.dense.weight"
    mask = child._masks[name]
    assert (after[name] - start[name])[mask].norm() < (without[name] - start[name])[mask].norm()
