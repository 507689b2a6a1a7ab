from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.transfer.prompt_transfer import resized
from anytune.models.soft_prompts import prompt_of
from tests.methods.transfer.given_prompts import with_sources
from tests.methods.transfer.taught import taught
from tests.methods.tune.by_hand import weights


def prepared(small, **settings):
    method = registry.create("transfer/prompt_transfer", settings)
    small.model = method.prepare(small.model, small.run)
    return prompt_of(small.model)


def test_it_starts_at_the_sources_values_with_the_fresh_head(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, 1)
    before = weights(small.model)
    prompt = prepared(small)
    assert torch.equal(prompt.table.detach(), small.run.sources[0].values)
    assert prompt.config.dropout == 0.1
    for name in small.head_names:
        assert torch.equal(small.model.state_dict()[name], before[name])
    trained = {name for name, one in small.model.named_parameters() if one.requires_grad}
    assert trained == {"soft_prompt.table", *small.head_names}


def test_an_input_prompt_stays_one(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, 1, kind="input", length=5)
    prompt = prepared(small)
    assert (prompt.config.kind, prompt.config.length) == ("input", 5)


def test_several_sources_begin_at_their_weighted_mean(tiny_base, tiny_task):
    for settings, similar, shares in (
        ({}, (None, None), (0.5, 0.5)),
        ({"weights": "share"}, (0.6, 0.2), (0.75, 0.25)),
        ({"temperature": 0.5}, (0.6, 0.2), [math.exp(s / 0.5) / (math.exp(1.2) + math.exp(0.4)) for s in (0.6, 0.2)]),
    ):
        small = with_sources(tiny_base, tiny_task, 2)
        small.run.sources = [replace(one, similarity=s) for one, s in zip(small.run.sources, similar, strict=True)]
        first, second = (one.values for one in small.run.sources)
        prompt = prepared(small, **settings)
        torch.testing.assert_close(prompt.table.detach(), shares[0] * first + shares[1] * second)


def test_another_length_is_refused_unless_it_is_said_what_to_do(tiny_base, tiny_task):
    with pytest.raises(MethodError, match="length 5, and the sources have 3") as caught:
        prepared(with_sources(tiny_base, tiny_task, 1), length=5)
    assert "resize=repeat" in caught.value.fix
    small = with_sources(tiny_base, tiny_task, 1)
    values = small.run.sources[0].values
    assert torch.equal(prepared(small, length=5, resize="repeat").table.detach(), values[[0, 1, 2, 0, 1]])
    assert torch.equal(resized(values, 2), values[:2])


def test_the_sources_head_is_taken_where_its_labels_are_the_tasks(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, 1)
    source = taught(small)
    small.run.sources, small.run.label_names = [replace(source, label_names=("x", "y", "z"))], ("x", "y", "z")
    prepared(small, head="source")
    for name in small.head_names:
        torch.testing.assert_close(small.model.state_dict()[name], source.head[name].double())


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"label_names": ("z", "y", "x")}, "answers 3 labels", "head=fresh"),
        ({"head": {}}, "holds no bert.pooler", "anytune tuned"),
        ({"head": "wide"}, r"classifier.weight is \[5, 32\]", "head=fresh"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tiny_base, tiny_task, change, what, fix):
    small = with_sources(tiny_base, tiny_task, 1)
    source = taught(small)
    if change.get("head") == "wide":
        change = {"head": {**source.head, "classifier.weight": torch.zeros(5, 32)}}
    small.run.label_names = ("x", "y", "z")
    small.head_names.sort()
    small.run.sources = [replace(source, **{"label_names": ("x", "y", "z"), **change})]
    with pytest.raises(MethodError, match=what) as caught:
        prepared(small, head="source")
    assert fix in caught.value.fix


def test_sources_that_cannot_be_started_from_are_errors(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, 2)
    deep = small.run.sources[0]
    shallow = with_sources(tiny_base, tiny_task, 1, kind="input").run.sources[0]
    broken = replace(deep, values=deep.values * math.nan)
    longer = replace(deep, values=resized(deep.values, 4))
    for sources, what in (
        ((), "needs a source prompt"),
        ((deep, shallow), "deep and input prompts"),
        ((deep, longer), "the sources have 3, 4"),
        ((broken,), "NaN"),
        ((replace(deep, values=deep.values[:, :7]),), "width"),
    ):
        small.run.sources = sources
        with pytest.raises(MethodError, match=what):
            prepared(small)
