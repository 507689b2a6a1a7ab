from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.protocol import Run
from anytune.models.base import load_base
from tests.contract.bench import equal, state
from tests.methods.recycle.outdated import logits


@pytest.mark.parametrize("name", ["direct", "initialize"])
def test_without_outdated_weights_the_error_says_which_command_brings_them(tiny_base, name):
    run = Run(seed=0, steps=1, anatomy=load_base(tiny_base).anatomy)
    with pytest.raises(MethodError, match=f"method '{name}' needs outdated weights") as caught:
        registry.create(name).prepare(torch.nn.Linear(1, 1), run)
    assert caught.value.fix == "anytune recycle DELTA --base NEW_BASE"


@pytest.mark.parametrize("name", ["direct", "initialize"])
def test_the_model_to_use_is_the_one_the_installation_gives_back(tiny_base, name):
    wrapped = torch.nn.Linear(2, 2)
    run = Run(seed=0, steps=1, anatomy=load_base(tiny_base).anatomy, install_outdated=lambda model: wrapped)
    assert registry.create(name).prepare(torch.nn.Linear(1, 1), run) is wrapped


@pytest.mark.parametrize("kind", ["full_case", "lora_case"])
def test_a_run_can_start_from_a_part_of_the_difference_under_the_whole_head(kind, request):
    case = request.getfixturevalue(kind)
    half, _ = case.prepared("initialize", scale=0.5)
    assert equal(state(half), state(case.outdated.install(case.model()[0], 0.5)))
    whole, direct = case.prepared("initialize")[0], case.prepared("direct")[0]
    assert equal(state(whole), state(direct))
    assert not torch.equal(logits(case, half), logits(case, whole))
    heads = [
        {name: tensor for name, tensor in state(model).items() if "classifier" in name} for model in (half, whole)
    ]
    assert heads[0]
    assert equal(*heads)


def test_a_part_of_the_difference_needs_more_than_a_function_that_installs(tiny_base):
    run = Run(seed=0, steps=1, anatomy=load_base(tiny_base).anatomy, install_outdated=lambda model: model)
    with pytest.raises(MethodError, match="needs outdated weights"):
        registry.create("initialize", {"scale": 0.5}).prepare(torch.nn.Linear(1, 1), run)
