"""Invariant 11 of recycling: on a permuted base, the permuted difference answers as the old tuned model did."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.models.base import load_base
from anytune.models.permutation import permute, symmetries
from tests.contract.bench import equal, state
from tests.methods.recycle.outdated import Case, logits
from tests.models.test_permutation import shuffled


def permuted_base(folder, out):
    """A copy of a base whose heads and neurons stand in another order."""
    base = load_base(folder)
    tensors = base.tensors()
    units = symmetries({name: tensors.shape(name) for name in tensors}, base.anatomy, base.config)
    turned = permute(dict(tensors), units, shuffled(units, base.anatomy, seed=9))
    shutil.copytree(folder, out)
    stored = load_file(out / "model.safetensors")
    for name in stored:
        bare = base.anatomy.canonical(name)
        stored[name] = turned.get(bare, stored[name]).contiguous()
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def turned(moving_bases, tmp_path_factory):
    return permuted_base(moving_bases[0], tmp_path_factory.mktemp("turned") / "base")


@pytest.mark.parametrize("kind", ["old_full", "old_lora"])
def test_on_a_permuted_base_the_old_answers_come_back(kind, turned, moving_bases, tiny_task, request):
    case = Case(request.getfixturevalue(kind), moving_bases[0], turned, tiny_task)
    wanted = logits(case, case.outdated.make_teacher())
    model, method = case.prepared("rebasin")
    torch.testing.assert_close(logits(case, model), wanted, rtol=0, atol=1e-4)
    direct = logits(case, case.prepared("direct")[0])
    assert (direct - wanted).abs().max() > 0.1, "without the permutation the answers are others"
    assert "0.0%" not in method.notes()[0]
    assert hasattr(model, "peft_config") == (kind == "old_lora")


@pytest.mark.parametrize("levels", [["neurons"], ["heads"], ["heads", "inside"]])
def test_each_level_is_needed(levels, turned, moving_bases, old_full, tiny_task):
    case = Case(old_full, moving_bases[0], turned, tiny_task)
    wanted = logits(case, case.outdated.make_teacher())
    assert (logits(case, case.prepared("rebasin", levels=levels)[0]) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["old_full", "old_lora"])
def test_on_the_same_base_nothing_moves_and_it_is_direct_reuse_bit_for_bit(kind, moving_bases, tiny_task, request):
    case = Case(request.getfixturevalue(kind), moving_bases[0], moving_bases[0], tiny_task)
    model, method = case.prepared("rebasin")
    assert equal(state(model), state(case.prepared("direct")[0]))
    assert "0.0%" in method.notes()[0]


def test_without_levels_it_is_direct_reuse(full_case):
    assert equal(state(full_case.prepared("rebasin", levels=[])[0]), state(full_case.prepared("direct")[0]))
    assert not equal(state(full_case.prepared("rebasin")[0]), state(full_case.prepared("direct")[0]))
