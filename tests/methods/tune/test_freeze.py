from __future__ import annotations

import pytest
from torch import nn

from anytune.engine import method_groups
from anytune.errors import MethodError, SettingsError
from anytune.methods import registry
from anytune.methods.tune.freeze import Freeze
from tests.methods.prepared import prepared_model as prepared
from tests.models.kinds import KINDS, VARIANTS, make_kind


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def everything(model) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("parts", [[], ["embeddings"]])
def test_the_parts_named_are_frozen_and_nothing_else(tiny_base, parts, blocks):
    model, _ = prepared(tiny_base, Freeze(parts=parts, blocks=blocks))
    marks = [".embeddings."] * len(parts) + [f".layer.{n}." for n in range(blocks)]
    frozen = {name for name in everything(model) if any(mark in name for mark in marks)}
    assert everything(model) - trained(model) == frozen
    assert bool(frozen) == bool(marks)


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_in_every_kind_the_lowest_block_and_the_embeddings_stay(kind, tmp_path):
    task = "generation" if kind.startswith("t5") else "classification"
    model, run = prepared(make_kind(kind, tmp_path), Freeze(parts=["embeddings"], blocks=1), task=task)
    for name, parameter in model.named_parameters():
        depth = run.anatomy.depth(name)
        assert parameter.requires_grad == (depth in (None, 2)), name


def test_a_hypernetwork_is_frozen_whole_and_alone(tiny_base):
    model, run = prepared(tiny_base)
    model.bert.hyperprompt = nn.Linear(2, 2)
    Freeze(parts=["hyperprompt"]).prepare(model, run)
    assert everything(model) - trained(model) == {"bert.hyperprompt.weight", "bert.hyperprompt.bias"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"parts": ["hyperprompt"]}, "no hypernetwork of prompts"), ({"blocks": 3}, "blocks = 3, and this base has 2")],
)
def test_what_the_base_does_not_have_is_an_error(tiny_base, settings, words):
    with pytest.raises(MethodError, match=words):
        prepared(tiny_base, Freeze(**settings))


def test_settings_are_checked_and_a_list_of_one_may_be_a_word_of_the_command_line():
    assert registry.create("tune/freeze", {"parts": "hyperprompt"}).parts == ["hyperprompt"]
    assert [setting.default for setting in registry.describe("tune/freeze")] == [["embeddings"], 0]
    for wrong in ({"parts": ["pooler"]}, {"parts": "pooler"}, {"blocks": -1}):
        with pytest.raises(SettingsError):
            registry.create("tune/freeze", wrong)


def test_a_method_that_trains_what_is_frozen_is_refused_by_name(tiny_base):
    freeze = Freeze()
    model, _ = prepared(tiny_base, freeze)
    model.requires_grad_(True)
    with pytest.raises(MethodError, match=r"freeze froze bert.embeddings.word_embeddings.weight"):
        method_groups(model, [freeze], 1e-3, 0.01)
