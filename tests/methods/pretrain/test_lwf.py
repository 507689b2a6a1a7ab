from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anytune.data.batches import BlockBatches
from anytune.methods.pretrain.lwf import LwF
from tests.methods.pretrain.little_stream import Little, same


def ready(base, domain, dropout=0.0, **settings):
    little = Little(base, domain, dropout=dropout)
    method = little.prepared(LwF(**settings))
    little.model.train()
    method.before_step(little.model)
    return little, method


def term(little, method, step=0):
    batch = little.batches.batch(step)
    output = little.objective.forward(little.model, batch)
    return method.objective(little.model, batch, output, {})["lwf"], output


def perturb(model, scale=0.1):
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.randn_like(weight))


def test_as_a_stage_begins_the_term_and_its_gradient_are_exactly_zero(tiny_base, tiny_domain):
    little, method = ready(tiny_base, tiny_domain)
    found, _ = term(little, method)
    found.backward()
    assert found.item() == 0.0
    assert all(not weight.grad.any() for weight in little.model.parameters() if weight.grad is not None)


def test_with_dropout_the_copy_answers_without_it(tiny_base, tiny_domain):
    little, method = ready(tiny_base, tiny_domain, dropout=0.3)
    assert term(little, method)[0].item() > 1e-6
    assert not any(module.training for module in method._teacher.model.modules())
    batch = little.batches.batch(0)
    with torch.no_grad():
        first, second = (little.objective.forward(method._teacher.model, batch).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_is_the_divergence_written_out(temperature, tiny_base, tiny_domain):
    little, method = ready(tiny_base, tiny_domain, weight=0.6, temperature=temperature)
    stock, _ = little.base.pretraining_model(7)
    perturb(little.model)
    found, output = term(little, method)
    batch = little.batches.batch(0)
    with torch.no_grad():
        before = stock.double().eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    p = (before[batch["labels"] != -100] / temperature).softmax(-1)
    q = (output.logits.detach() / temperature).softmax(-1)
    naive = 0.6 * temperature**2 * (p * (p / q).log()).sum(-1).mean()
    assert found.item() == pytest.approx(naive.item(), rel=1e-9)


def test_training_leaves_the_copy_as_it_was_and_moves_less_than_plain_training(tiny_base, tiny_domain):
    little, method = ready(tiny_base, tiny_domain)
    little, method = Little(tiny_base, tiny_domain, steps=20), LwF(weight=10.0)
    stock = dict(little.base.pretraining_model(7)[0].double().named_parameters())
    held = little.train([method])
    for name, weight in method._teacher.model.named_parameters():
        assert torch.equal(weight, stock[name])
        assert weight.grad is None

    def away(weights):
        perturbed = Little(tiny_base, tiny_domain)
        batch = perturbed.batches.batch(0)
        before = perturbed.objective.forward(perturbed.model, batch).logits.log_softmax(-1)
        perturbed.model.load_state_dict(weights, strict=False)
        after = perturbed.objective.forward(perturbed.model, batch).logits.log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1).mean().item()

    assert away(held) < 0.5 * away(Little(tiny_base, tiny_domain, steps=20).train([]))


def test_a_batch_without_a_scored_position_adds_nothing(tiny_base, tiny_domain):
    little, method = ready(tiny_base, tiny_domain)
    terms = {"loss": torch.zeros(())}
    assert method.objective(little.model, {}, SimpleNamespace(logits=torch.zeros(0, 9)), terms) is terms


def test_a_weight_of_0_copies_nothing(tiny_base, tiny_domain):
    little = Little(tiny_base, tiny_domain)
    method = LwF(weight=0.0)
    plain = Little(tiny_base, tiny_domain).train([])
    assert same(little.train([method]), plain)
    assert method._teacher is None
    assert isinstance(little.batches, BlockBatches)
