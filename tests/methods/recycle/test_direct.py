from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.protocol import Run
from anytune.models.base import load_base


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
