from __future__ import annotations

import copy
import math

import pytest
import torch

from anytune.errors import MethodError, SettingsError
from anytune.methods import registry
from anytune.methods.recycle.scaled import chosen_scale, whole_grid
from tests.contract.bench import equal, state


def test_zero_and_one_always_stand_in_the_grid():
    assert whole_grid([0.5, 0.5, 2]) == [0.0, 0.5, 1.0, 2.0]


def test_the_best_score_wins_and_of_equal_ones_the_nearest_to_one():
    assert chosen_scale([0, 0.5, 1], [0.1, 0.3, 0.2]) == 0.5
    assert chosen_scale([0, 0.5, 1, 1.5], [0.3, 0.3, 0.1, 0.3]) == 0.5
    assert chosen_scale([0, 1], [math.nan, -2.0]) == 1
    with pytest.raises(MethodError, match="no coefficient"):
        chosen_scale([0, 1], [math.nan, math.nan])


@pytest.mark.parametrize("kind", ["full_case", "lora_case"])
def test_each_coefficient_is_scored_and_the_best_one_stays_in_the_model(kind, request):
    case = request.getfixturevalue(kind)
    run = case.run()
    scores = {scale: case.validate(case.outdated.install(case.model()[0], scale)) for scale in (0.0, 0.4, 1.0, 2.5)}
    method = registry.create("recycle/scaled", {"grid": [2.5, 0.4]})
    model = method.prepare(case.model()[0], run)
    best = max(scores, key=lambda scale: scores[scale])
    wanted = case.outdated.install(case.model()[0], best)
    assert equal(state(model), state(wanted))
    assert method.notes()[0].startswith(f"scaled: {best:g} of the difference")


@pytest.mark.parametrize("kind", ["full_case", "lora_case"])
@pytest.mark.parametrize("best", [0.0, 1.0])
def test_it_can_end_at_the_new_base_alone_and_at_direct_reuse_bit_for_bit(kind, best, request):
    case = request.getfixturevalue(kind)
    asked = []

    def validate(model):
        asked.append(model)
        return float(len(asked) == 1 + int(best))

    plain, _ = case.model()
    model = registry.create("recycle/scaled", {"grid": [1.0]}).prepare(
        copy.deepcopy(plain), case.run(validate=validate)
    )
    assert len(asked) == 2
    if best == 1.0:
        assert equal(state(model), state(case.prepared("direct")[0]))
        return
    bare = case.outdated.install_difference(copy.deepcopy(plain), {})
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    assert equal(state(model), state(bare))
    assert not equal(state(model), state(plain)), "the head is the old one"


def test_without_validation_data_it_says_so(full_case):
    with pytest.raises(MethodError, match="needs to know the run's validate"):
        registry.create("recycle/scaled").prepare(full_case.model()[0], full_case.run(validate=None))


def test_a_grid_outside_its_limits_is_refused():
    for grid in ([], [100.0]):
        with pytest.raises(SettingsError, match="grid"):
            registry.create("recycle/scaled", {"grid": grid})


def test_a_soft_prompt_is_refused_with_what_to_do(full_case):
    class Prompt:
        kind = "prompt"

    run = full_case.run(outdated=Prompt(), install_outdated=len)
    with pytest.raises(MethodError, match="soft prompt cannot be scaled") as caught:
        registry.create("recycle/scaled").prepare(torch.nn.Linear(1, 1), run)
    assert caught.value.fix == "--method direct"
