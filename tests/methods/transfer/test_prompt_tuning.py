from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.protocol import Run
from anytune.models.soft_prompts import prompt_of, prompt_width
from tests.methods.tune.by_hand import Small, weights


def tuned(tiny_base, tiny_task, **settings):
    small = Small(tiny_base, tiny_task)
    before = weights(small.model)
    method = registry.create("transfer/prompt_tuning", {"length": 3, **settings})
    return small, before, small.train([method])


@pytest.mark.parametrize("kind", ["deep", "input"])
def test_only_prompt_and_head_are_trained_and_the_base_is_as_it_was(tiny_base, tiny_task, kind):
    small, before, after = tuned(tiny_base, tiny_task, kind=kind)
    head = set(small.head_names)
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == (name not in head), name
    held = {name for group in small.optimizer.param_groups for name in group["names"]}
    assert held == {"soft_prompt.table", *head}
    for name, parameter in small.model.named_parameters():
        assert (parameter.grad is None) == (name not in held), name
    assert prompt_of(small.model).values().shape == (3, prompt_width(small.model, kind, small.base.anatomy))


def test_the_prompt_is_drawn_from_the_runs_seed_at_the_spread_that_is_asked_for(tiny_base, tiny_task):
    tables = []
    for seed, spread in ((11, 0.02), (11, 0.02), (12, 0.02), (11, 0.5)):
        small = Small(tiny_base, tiny_task)
        small.run.seed = seed
        torch.rand(seed)
        state = torch.get_rng_state()
        method = registry.create("transfer/prompt_tuning", {"length": 40, "init_std": spread})
        tables.append(prompt_of(method.prepare(small.model, small.run)).table.detach())
        assert torch.equal(torch.get_rng_state(), state), "torch's own generator was drawn from"
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    torch.testing.assert_close(tables[0] * 25, tables[3])
    assert float(tables[0].std()) == pytest.approx(0.02, rel=0.05)


def test_a_projection_is_trained_and_gives_the_values(tiny_base, tiny_task):
    small, _, after = tuned(tiny_base, tiny_task, projection=5)
    prompt = prompt_of(small.model)
    names = [name for name in after if name.startswith("soft_prompt.")]
    assert len(names) == 5
    assert prompt.table.shape == (3, 32)
    first, second = prompt.projection[0], prompt.projection[2]
    expected = torch.tanh(prompt.table @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(prompt.values(), expected)


def test_dropout_is_on_the_prompt_while_it_trains_and_never_else(tiny_base, tiny_task):
    small = Small(tiny_base, tiny_task)
    method = registry.create("transfer/prompt_tuning", {"length": 3, "dropout": 0.5, "init_std": 1.0})
    model = method.prepare(small.model, small.run)
    model.train()
    assert not torch.equal(small.loss(0), small.loss(0))
    model.eval()
    assert torch.equal(small.loss(0), small.loss(0))


@pytest.mark.parametrize("first", ["tune/lora", "transfer/prompt_tuning"])
def test_a_second_adapter_is_refused(tiny_base, tiny_task, first):
    small = Small(tiny_base, tiny_task)
    model = registry.create(first).prepare(small.model, small.run)
    with pytest.raises(MethodError, match="prompt_tuning cannot be combined with another adapter"):
        registry.create("transfer/prompt_tuning").prepare(model, small.run)


def test_what_a_method_before_it_froze_stays_frozen(tiny_base, tiny_task):
    small = Small(tiny_base, tiny_task)
    small.model.classifier.bias.requires_grad_(False)
    registry.create("transfer/prompt_tuning").prepare(small.model, small.run)
    assert not small.model.classifier.bias.requires_grad


def test_without_a_head_the_prompt_alone_is_trained(tiny_base):
    from anytune.models.base import load_base

    base = load_base(tiny_base)
    model, _ = base.pretraining_model(0)
    registry.create("transfer/prompt_tuning").prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy))
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["soft_prompt.table"]
