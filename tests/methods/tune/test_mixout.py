from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from anytune.errors import MethodError
from anytune.methods import create
from anytune.methods.chosen import chosen_weights
from anytune.methods.mixing import column_mask
from anytune.methods.protocol import Run, check_composition
from anytune.methods.tune.mixout import Mixout
from anytune.models.base import load_base
from tests.methods.tune.by_hand import RATE, Small, adamw, same, weights
from tests.models.kinds import make_kind


@pytest.fixture
def small(tiny_base, tiny_task):
    return lambda **given: Small(tiny_base, tiny_task, **given)


@pytest.mark.parametrize("gradient_scale", [False, True])
def test_the_trajectory_is_that_of_the_formula_bit_for_bit(small, gradient_scale):
    """Oracle: a forward pass with the effective weights put in from outside."""
    made, plain, p = small(steps=8), small(), 0.4
    named = plain.named()
    anchors, chosen = weights(plain.model), list(chosen_weights(plain.model, plain.run.anatomy))
    optimizer = adamw([{"params": list(named.values()), "lr": RATE, "weight_decay": 0.0}])
    for step in range(8):
        effective = dict(named)
        masks = {}
        for index, name in enumerate(chosen):
            masks[name] = column_mask(11, step, index, named[name].shape[1], p)
            away = named[name].detach() - anchors[name]
            effective[name] = (anchors[name] + masks[name] * away / (1 - p)).requires_grad_()
        optimizer.zero_grad()
        batch = plain.batches.batch(step)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        logits = functional_call(plain.model.train(), effective, args=(), kwargs=inputs).logits
        torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
        for name in chosen:
            named[name].grad = effective[name].grad * masks[name]
            if gradient_scale:
                named[name].grad /= 1 - p
        optimizer.step()
    method = Mixout(p=p, gradient_scale=gradient_scale)
    assert same(made.train([method], clip=None, weight_decay=0.0), weights(plain.model))


def test_between_steps_the_weights_are_the_true_ones_and_only_in_a_step_the_mixed(small):
    made, method, seen = small(), Mixout(p=0.5), []
    before = method.before_step

    def watched(model):
        true = weights(model)
        before(model)
        mixed = weights(model)
        seen.append(({name for name in true if not torch.equal(true[name], mixed[name])}, true))

    method.before_step = watched
    made.train([method], seen=lambda step: seen.append(weights(made.model)))
    changed, true = seen[2]
    assert same(seen[3], true), "after the backward pass the true weights are back"
    assert changed == set(chosen_weights(made.model, made.run.anatomy))
    assert seen[0][0] <= changed, "in the first step weights are their anchors"


def test_unused_columns_get_no_gradient_and_used_ones_do(small):
    made, method, gradients = small(), Mixout(p=0.5), []
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    made.train([method], seen=lambda step: gradients.append(made.named()[name].grad.clone()), clip=None)
    index = list(chosen_weights(made.model, made.run.anatomy)).index(name)
    for step, gradient in enumerate(gradients):
        used = column_mask(11, step, index, gradient.shape[1], 0.5)
        assert torch.equal(gradient.ne(0).any(0), used)


def test_inputs_of_gpt2s_maps_lie_along_the_first_dimension_but_not_those_of_its_head(tmp_path):
    base = load_base(make_kind("gpt2", tmp_path))
    model, head = base.task_model("classification", ("a", "b"), 0)
    method = Mixout(p=0.5)
    method.prepare(model, Run(seed=11, steps=1, anatomy=base.anatomy, head_names=head))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    true = weights(model)
    method.before_step(model)
    chosen = chosen_weights(model, base.anatomy)
    block = next(name for name in chosen if name.endswith("mlp.c_fc.weight"))
    for name, inputs in ((block, 0), ("score.weight", 1)):
        index = list(chosen).index(name)
        mask = column_mask(11, 0, index, true[name].shape[inputs], 0.5)
        columns = (chosen[name] - true[name]).movedim(inputs, 0)
        torch.testing.assert_close(columns[mask], torch.ones_like(columns[mask]))
        torch.testing.assert_close(columns[~mask], -torch.ones_like(columns[~mask]))
    assert torch.equal(model.transformer.wte.weight, true["transformer.wte.weight"])


def test_the_blocks_alone_can_be_asked_for_and_no_linear_map_is_an_error(small):
    made, method = small(), Mixout(p=0.5, include="backbone")
    method.prepare(made.model, made.run)
    assert all(".layer." in name for name in method._inputs)
    assert len(method._inputs) == 12
    made.model.requires_grad_(False)
    with pytest.raises(MethodError, match="mixout found no linear map to mix"):
        method.prepare(made.model, made.run)


def test_a_model_that_was_wrapped_since_is_an_error(small):
    with pytest.raises(MethodError, match="mixout finds none of its weights"):
        small().train([create("mixout"), create("lora")])
    small().train([create("lora"), create("mixout")])  # the adapter's matrices are mixed


def test_torchs_generator_is_left_alone_and_anchors_may_lie_elsewhere(small):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    after = {place: small().train([Mixout(p=0.5, anchor=place)]) for place in ("device", "cpu", "bf16")}
    assert torch.equal(before, torch.get_rng_state())
    assert same(after["device"], after["cpu"])
    assert not same(after["device"], after["bf16"])


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(small):
    method = Mixout(p=0.5)
    made = small()
    whole = small().train([Mixout(p=0.5)], optimizer=None)
    made.train([method], last=2)
    again = Mixout(p=0.5)
    again.prepare(small().model, made.run)
    again.load_state_dict(method.state_dict())
    assert same(made.train([again], first=2, prepared=True, optimizer=made.optimizer), whole)


def test_together_with_extrapolation_it_is_refused_naming_both():
    with pytest.raises(MethodError, match="'mixout' and 'extrapolation' cannot be combined: both put other weights"):
        check_composition([create("mixout"), create("extrapolation")])
