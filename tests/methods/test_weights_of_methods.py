"""What methods on weights share: which matrices are chosen, anchors, weights put in place and back, held entries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytune.methods import create
from anytune.methods.anchors import Anchors
from anytune.methods.chosen import chosen_weights, transposed_names
from anytune.methods.holding import step_holding
from anytune.methods.protocol import Run
from anytune.methods.swapping import Swap
from anytune.models.base import load_base
from tests.methods.tune.subnetworks import Net, loss_of
from tests.models.kinds import KINDS, make_kind


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_the_blocks_of_every_kind_are_found_and_add_up(kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path))
    model, head_names = base.task_model("classification", ["a", "b"], 0)
    found = {part: set(chosen_weights(model, base.anatomy, part)) for part in
             ("all", "backbone", "attention", "feed_forward")}  # fmt: skip
    assert found["attention"]
    assert found["feed_forward"]
    assert not found["attention"] & found["feed_forward"]
    assert found["attention"] | found["feed_forward"] <= found["backbone"] <= found["all"]
    assert not found["backbone"] & set(head_names)
    assert found["all"] & set(head_names), "the head is selected from, too"
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    embeddings = {
        name
        for name, parameter in model.named_parameters()
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is parameter
    }
    assert found["all"] == matrices - embeddings
    transposed = transposed_names(model, found["all"])
    assert bool(transposed) == (kind == "gpt2")
    assert not transposed & set(head_names)


def test_of_a_model_with_an_adapter_its_matrices_are_chosen(tiny_base):
    base = load_base(tiny_base)
    model, head_names = base.task_model("classification", ["a", "b"], 0)
    run = Run(seed=0, steps=40, anatomy=base.anatomy, head_names=head_names)
    model = create("lora", {"r": 2}).prepare(model, run)
    chosen = chosen_weights(model, base.anatomy)
    assert any("lora_A" in name for name in chosen)
    assert all("lora_" in name or "modules_to_save" in name for name in chosen)


@pytest.mark.parametrize("place", ["device", "cpu", "bf16"])
def test_anchors_are_copies_in_the_dtype_of_the_weight(place):
    weight = nn.Parameter(torch.randn(4, 3))
    anchors = Anchors(place)
    anchors.take({"w": weight})
    was = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    for _ in range(2):
        found = anchors.at("w", weight)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, was, rtol=0.01 if place == "bf16" else 0, atol=0)
    assert "w" in anchors
    assert "v" not in anchors
    with pytest.raises(KeyError):
        anchors.at("v", weight)


def test_swapped_weights_come_back_and_gradients_are_those_at_the_swapped_ones():
    model, swap = Net(), Swap()
    weight = model.first.weight
    true, object_before = weight.detach().clone(), weight
    swap.put({"first.weight": weight}, lambda name, values: values * 2)
    assert torch.equal(weight, true * 2)
    loss_of(model, 0).backward()
    swap.restore()
    assert model.first.weight is object_before
    assert torch.equal(weight, true)
    doubled = Net()
    with torch.no_grad():
        doubled.first.weight.mul_(2)
    loss_of(doubled, 0).backward()
    assert torch.equal(weight.grad, doubled.first.weight.grad)
    swap.restore()
    assert torch.equal(weight, true)


def test_a_step_that_was_broken_off_does_not_make_other_weights_the_true_ones():
    model, swap = Net(), Swap()
    true = model.first.weight.detach().clone()
    for _ in range(2):
        swap.put({"first.weight": model.first.weight}, lambda name, values: values + 1)
    swap.restore()
    assert torch.equal(model.first.weight, true)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_a_holding_step_is_the_optimizers_for_the_free_entries_and_nothing_for_the_held(kind):
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    models = [Net(), Net()]
    optimizers = [kind(model.parameters(), lr=0.01, weight_decay=0.1, **more) for model in models]
    generator = torch.Generator().manual_seed(0)
    held_model = models[1]
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in held_model.named_parameters()
        if name in ("first.weight", "second.weight", "head.weight")
    }
    for step in range(3):
        before = {name: parameter.detach().clone() for name, parameter in held_model.named_parameters()}
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(models[0], step).backward() if model is models[0] else None
        for one, other in zip(models[0].parameters(), held_model.parameters(), strict=True):
            other.grad = one.grad.clone()
        parameters = dict(held_model.named_parameters())
        step_holding(optimizers[1], [(parameters[name], mask) for name, mask in masks.items()])
        assert all(parameters[name].grad is None for name in masks)
        assert parameters["first.bias"].grad is not None
        optimizers[1].step()
        optimizers[0].step()
        for name, plain in models[0].named_parameters():
            mask = masks.get(name, torch.zeros_like(plain, dtype=torch.bool))
            assert torch.equal(parameters[name][mask], before[name][mask])
            if step == 0:
                assert torch.equal(parameters[name][~mask], plain[~mask])
                for key, value in optimizers[0].state[plain].items():
                    if value is not None and value.shape == plain.shape:
                        assert torch.equal(optimizers[1].state[parameters[name]][key][~mask], value[~mask])
                        assert not optimizers[1].state[parameters[name]][key][mask].any()
