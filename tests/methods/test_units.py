"""Gates and weights of units, on a really made model of every kind."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from anytune import compat
from anytune.methods.units import gate_gradients, gated, spread, units_of
from anytune.models.anatomy import anatomy_of
from anytune.models.language_modelling import language_model_loss
from tests.models.kinds import KINDS, VARIANTS, make_model

ALL = (*KINDS, *VARIANTS)
EVERY = ("heads", "neurons", "outputs")


@functools.cache
def model_of(kind):
    return make_model(kind, 96).double()


def batch_of():
    ids = torch.randint(5, 96, (2, 8), generator=torch.Generator().manual_seed(7))
    labels = ids.masked_fill(torch.rand(2, 8, generator=torch.Generator().manual_seed(8)) < 0.5, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "num_items": 1}


def loss_of(model, units=(), gates=None):
    with torch.no_grad(), gated(model, units, gates or {}):
        return language_model_loss(model, batch_of(), anatomy_of(model)).item()


def off(one, unit):
    gates = torch.ones(one.count, dtype=torch.float64)
    gates[unit] = 0
    return {one.key: gates}


@pytest.mark.parametrize("kind", ALL)
def test_units_are_those_of_the_config_and_their_weights_are_all_maps_of_the_blocks(kind):
    model, anatomy = model_of(kind), anatomy_of(model_of(kind))
    units = units_of(model, anatomy, EVERY)
    parts = sum((len(stack.attention) + 2) * len(blocks) for stack, blocks in anatomy.block_stacks(model))
    assert len(units) == len({one.key for one in units}) == parts
    counts = {end: {one.count for one in units if one.key.endswith(end)} for end in EVERY}
    assert counts == {"heads": {2}, "neurons": {32} if kind != "gpt2" else {64}, "outputs": {16}}
    of_blocks = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, compat.linear_types()) and anatomy.depth(f"{name}.weight") in (1, 2)
    }
    assert {name for one in units for name, _ in one.weights if name.endswith("weight")} == of_blocks
    assert [one.key.rsplit(".", 1)[1] for one in units_of(model, anatomy, ["neurons"])].count("neurons") == len(
        units_of(model, anatomy, ["neurons"])
    )


@pytest.mark.parametrize("kind", ALL)
def test_gates_of_ones_change_nothing_and_no_hook_is_left(kind):
    model = model_of(kind)
    units = units_of(model, anatomy_of(model), EVERY)
    plain = loss_of(model)
    assert loss_of(model, units, {one.key: torch.ones(one.count, dtype=torch.float64) for one in units}) == plain
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ALL)
def test_what_a_closed_gate_shuts_off_depends_on_the_units_own_weights_alone(kind):
    """Behind a closed gate, any change of the weights that lead to the unit or from it is without effect."""
    model = copy.deepcopy(model_of(kind))
    shared = getattr(model.config, "num_key_value_heads", None) == 1
    parameters = dict(model.named_parameters())
    plain = loss_of(model)
    for one in units_of(model, anatomy_of(model), EVERY):
        unit = one.count - 1
        chosen = slice(None) if shared and one.key.endswith("heads") else unit  # its keys are the other heads' too
        closed = off(one, chosen)
        before = loss_of(model, [one], closed)
        assert before != plain, one.key
        marks = 1 - closed[one.key]
        kept = {name: parameters[name].detach().clone() for name, _ in one.weights}
        with torch.no_grad():
            for name, dimension in one.weights:
                weight = parameters[name]
                shape = [1] * weight.ndim
                shape[dimension] = -1
                where = spread(marks, one.size, weight.shape[dimension]).view(shape).expand_as(weight) > 0
                weight[where] += 0.5
        assert loss_of(model, [one], closed) == pytest.approx(before, abs=1e-12), one.key
        assert loss_of(model) != plain, f"{one.key}: with the gate open they do matter"
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


def test_a_value_for_each_unit_is_spread_over_a_dimension():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spread(values, 1, 4).tolist() == [1, 2, 3, 4]
    assert spread(values[:2], 2, 4).tolist() == [1, 1, 2, 2]
    assert spread(values[:2], 2, 12).tolist() == [1, 1, 2, 2] * 3
    assert spread(values, 3, 6).tolist() == [2, 2, 2, 4, 4, 4], "two heads share a key: the larger of their values"


def test_gate_gradients_are_slopes_of_the_mean_loss_and_leave_the_model_as_it_is():
    model = model_of("bert")
    anatomy = anatomy_of(model)
    units = units_of(model, anatomy, EVERY)
    batches = [{**batch_of(), "num_items": 1}, {**batch_of(), "num_items": 3}]
    batches[1]["labels"] = batches[1]["labels"].flip(0)
    found = gate_gradients(model, units, batches, lambda batch: language_model_loss(model, batch, anatomy))
    assert all(parameter.grad is None for parameter in model.parameters())
    for one in units[::3]:
        for unit in (0, one.count - 1):
            losses = []
            for change in (1e-5, -1e-5):
                gates = torch.ones(one.count, dtype=torch.float64)
                gates[unit] += change
                with torch.no_grad(), gated(model, [one], {one.key: gates}):
                    first, second = (language_model_loss(model, batch, anatomy).item() for batch in batches)
                losses.append((first + 3 * second) / 4)
            assert found[one.key][unit].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-8)
