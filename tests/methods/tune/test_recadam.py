from __future__ import annotations

import math

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import create
from anytune.methods.tune.recadam import RecAdam, learning_share
from tests.methods.tune.by_hand import RATE, InParts, Small, adamw, close, same, weights


@pytest.fixture
def small(tiny_base, tiny_task):
    return lambda **given: Small(tiny_base, tiny_task, **given)


def test_the_share_of_the_task_is_a_sigmoid_about_the_midpoint():
    assert learning_share(250, 250, 0.1) == 0.5
    assert learning_share(260, 250, 0.1) == pytest.approx(1 / (1 + math.exp(-1)))
    assert learning_share(260, 250) == learning_share(260, 250, 0.1), "the paper's middle values"
    assert learning_share(26, 25) == pytest.approx(learning_share(260, 250)), "the same curve in a shorter run"
    assert learning_share(1, 10**6, 1.0) < 1e-300
    assert learning_share(1, 0.0) == 1.0
    assert learning_share(1000, 250, 0.1) == 1.0


@pytest.mark.parametrize("gamma", [3.0, 5000.0])
def test_decoupled_is_the_papers_update_written_out(small, gamma):
    """Adam in ten lines, in fp64; with the larger gamma the pull of a step would overshoot and stops at the anchor."""
    made, plain = small(double=True), small(double=True)
    anchors, base, named = weights(plain.model), set(plain.of_base()), plain.named()
    first = {name: torch.zeros_like(weight) for name, weight in named.items()}
    second = {name: torch.zeros_like(weight) for name, weight in named.items()}
    for step in range(4):
        plain.model.zero_grad()
        plain.loss(step).backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        t, share = step + 1, 1 / (1 + math.exp(-25 / 2 * (step + 1 - 2)))
        with torch.no_grad():
            for name, weight in named.items():
                if weight.grad is None:
                    continue
                first[name] = 0.9 * first[name] + 0.1 * weight.grad
                second[name] = 0.999 * second[name] + 0.001 * weight.grad**2
                size = (second[name] / (1 - 0.999**t)).sqrt() + 1e-8
                update = first[name] / (1 - 0.9**t) / size
                if name in base:
                    back = min(RATE * (1 - share) * gamma, 1.0)
                    weight -= RATE * share * update + back * (weight - anchors[name])
                else:
                    weight -= RATE * update
    close(made.train([RecAdam(midpoint=0.5, gamma=gamma)], weight_decay=0.0), weights(plain.model), atol=1e-10)


def test_the_gradient_form_is_plain_adam_on_the_mixture_made_after_clipping(small):
    made, plain = small(double=True), small(double=True)
    anchors, base, named = weights(plain.model), set(plain.of_base()), plain.named()
    optimizer = adamw([{"params": list(named.values()), "lr": RATE, "weight_decay": 0.0}])
    for step in range(4):
        optimizer.zero_grad()
        plain.loss(step).backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 0.1)
        share = 1 / (1 + math.exp(-0.7 * (step + 1 - 3)))
        for name in base:
            if named[name].grad is not None:
                named[name].grad = (
                    share * named[name].grad + (1 - share) * 0.2 * (named[name] - anchors[name]).detach()
                )
        optimizer.step()
    method = RecAdam(midpoint_steps=3, rate=0.7, gamma=0.2, form="gradient")
    close(made.train([method], clip=0.1, weight_decay=0.0), weights(plain.model), atol=1e-10)


def test_rates_are_as_they_were_after_each_step(small):
    made = small()
    made.train([RecAdam(midpoint=0.5)])
    assert {group["lr"] for group in made.optimizer.param_groups} == {RATE}


def test_once_the_sigmoid_is_1_it_is_plain_training(small):
    """From a midpoint long past: 25 / 0.04 per step is 1 within fp64 from the first step on."""
    plain = small().train([])
    groups = small()
    assert same(groups.train([RecAdam(midpoint=0.01)], clip=None), small().train([], clip=None))
    assert same(small().train([RecAdam(midpoint=0.0)]), plain)
    assert not same(small().train([RecAdam(midpoint=0.5)]), plain)


def test_a_run_that_goes_on_counts_on(small):
    whole = small().train([RecAdam(midpoint=0.5, gamma=3.0)])
    made, method = small(), RecAdam(midpoint=0.5, gamma=3.0)
    made.train([method], last=2)
    method.load_state_dict(method.state_dict())
    optimizer = made.optimizer
    again = RecAdam(midpoint=0.5, gamma=3.0)
    again.prepare(small().model, made.run)
    again.load_state_dict(method.state_dict())
    optimizer._optimizer_step_pre_hooks.clear()
    optimizer._optimizer_step_post_hooks.clear()
    assert same(made.train([again], first=2, prepared=True, optimizer=optimizer), whole)


@pytest.mark.parametrize("form", ["decoupled", "gradient"])
@pytest.mark.parametrize("first", [True, False])
def test_each_weight_is_mixed_once_where_a_method_makes_the_step_in_parts(small, first, form):
    whole = small().train([RecAdam(midpoint=0.5, gamma=3.0, form=form)])
    methods = [RecAdam(midpoint=0.5, gamma=3.0, form=form), InParts()]
    parts = small().train(methods if first else methods[::-1])
    assert same(whole, parts)


@pytest.mark.parametrize("order", [("lora", "recadam"), ("recadam", "lora")])
def test_with_an_adapter_it_would_do_nothing_and_that_is_an_error(small, order):
    with pytest.raises(MethodError, match=r"recadam (found no weight of the base|finds none of its weights)"):
        small().train([create(name) for name in order])
