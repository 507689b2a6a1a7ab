from __future__ import annotations

import pytest
import torch

from anytune.methods.tune.extrapolation import Extrapolation, extrapolated
from tests.methods.tune.by_hand import RATE, InParts, Small, adamw, same, weights


@pytest.fixture
def small(tiny_base, tiny_task):
    return lambda **given: Small(tiny_base, tiny_task, **given)


def test_weights_are_moved_against_the_direction_and_left_as_they_are():
    weight = torch.tensor([1.0, 2.0])
    assert extrapolated(weight, torch.tensor([2.0, -4.0]), 0.5).tolist() == [0.0, 4.0]
    assert weight.tolist() == [1.0, 2.0]


def test_the_trajectory_is_that_of_the_formula_bit_for_bit(small):
    made, plain, distance = small(steps=8), small(), 0.3
    named = plain.named()
    optimizer = adamw([{"params": list(named.values()), "lr": RATE, "weight_decay": 0.0}])
    previous = {}
    for step in range(8):
        true = weights(plain.model)
        with torch.no_grad():
            for name, gradient in previous.items():
                named[name].sub_(gradient, alpha=distance)
        optimizer.zero_grad()
        plain.loss(step).backward()
        with torch.no_grad():
            for name in previous:
                named[name].copy_(true[name])
        torch.nn.utils.clip_grad_norm_(list(named.values()), 0.5)
        previous = {name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None}
        optimizer.step()
    made.optimizer = adamw([{"params": list(made.named().values()), "names": list(made.named()), "lr": RATE,
                             "weight_decay": 0.0}])  # fmt: skip
    after = made.train([Extrapolation(distance=distance)], clip=0.5, optimizer=made.optimizer)
    assert same(after, weights(plain.model))


def test_the_first_step_is_a_plain_one_and_the_second_is_not(small):
    for steps, alike in ((1, True), (2, False)):
        assert same(small().train([Extrapolation()], last=steps), small().train([], last=steps)) is alike


def test_the_way_ahead_by_noise_has_the_length_asked_for_and_leaves_torchs_generator_alone(small):
    made, method = small(), Extrapolation(direction="noise", distance=0.7)
    method.prepare(made.model, made.run)
    torch.manual_seed(0)
    state, true = torch.get_rng_state(), weights(made.model)
    method.before_step(made.model)
    ahead = weights(made.model)
    length = sum((ahead[name] - true[name]).square().sum() for name in true).sqrt()
    assert abs(length.item() - 0.7) < 0.02
    method.after_backward(made.model)
    assert same(weights(made.model), true)
    method.after_step(made.model)
    method.before_step(made.model)
    assert not same(weights(made.model), ahead), "the next step has other noise"
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("direction", ["gradient", "noise"])
def test_a_run_that_goes_on_has_the_gradient_kept_and_the_noise_it_would_have_drawn(small, direction):
    whole = small().train([Extrapolation(direction=direction)])
    made, method = small(), Extrapolation(direction=direction)
    made.train([method], last=2)
    kept = method.state_dict()
    assert len(kept["previous"]) == (len(made.named()) if direction == "gradient" else 0)
    again = Extrapolation(direction=direction)
    again.prepare(made.model, made.run)
    again.load_state_dict(kept)
    made.optimizer._optimizer_step_pre_hooks.clear()
    assert same(made.train([again], first=2, prepared=True, optimizer=made.optimizer), whole)


def test_the_gradient_is_whole_where_a_method_makes_the_step_in_parts(small):
    assert same(small().train([InParts(), Extrapolation()]), small().train([Extrapolation()]))
