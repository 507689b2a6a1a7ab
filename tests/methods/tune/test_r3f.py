from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.protocol import Run
from anytune.models.base import load_base
from tests.methods.prepared import batch_of, prepared


def naive(model, batch, noise, weight):
    """Both passes by ``inputs_embeds``, as BERT alone would allow."""
    words = model.bert.embeddings.word_embeddings(batch["input_ids"])
    clean = model(inputs_embeds=words, attention_mask=batch["attention_mask"]).logits
    noisy = model(inputs_embeds=words + noise, attention_mask=batch["attention_mask"]).logits
    p, q = noisy.softmax(-1), clean.softmax(-1)
    both = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    return functional.cross_entropy(clean, batch["labels"]) + weight * both.mean()


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_loss_and_gradients_are_those_of_two_naive_passes(tiny_base, noise):
    ready = prepared(tiny_base, "tune/r3f", weight=3.0, scale=0.3, noise=noise)
    batch = batch_of()
    torch.manual_seed(4)
    found = sum(ready.terms(batch).values())
    found_gradients = torch.autograd.grad(found, list(ready.model.parameters()), allow_unused=True)
    torch.manual_seed(4)
    shape = (4, 6, 32)
    drawn = torch.randn(shape, dtype=torch.float64) if noise == "normal" else torch.rand(shape, dtype=torch.float64)
    drawn = drawn * 0.3 if noise == "normal" else (drawn * 2 - 1) * 0.3
    expected = naive(ready.model, batch, drawn, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(expected, list(ready.model.parameters()), allow_unused=True)
    for one, other in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["regression", "token-classification"])
def test_other_kinds_of_task_have_a_term_too(tiny_base, kind):
    terms = prepared(tiny_base, "tune/r3f", kind, scale=0.3).terms(batch_of(kind))
    assert terms["r3f"].item() > 0


def test_smaller_noise_costs_less_and_the_default_almost_nothing(tiny_base):
    found = [
        prepared(tiny_base, "tune/r3f", scale=scale).terms(batch_of())["r3f"].item() for scale in (0.3, 0.03, 1e-5)
    ]
    assert found[0] > 3 * found[1] > 1e3 * found[2] > 0


def test_it_needs_the_objective_unless_its_weight_is_0(tiny_base):
    base = load_base(tiny_base)
    model, head = base.task_model("classification", ("a", "b"), 0)
    run = Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head)
    registry.create("tune/r3f", {"weight": 0.0}).prepare(model, run)
    with pytest.raises(MethodError, match="method 'r3f' needs to know the run's objective"):
        registry.create("tune/r3f").prepare(model, run)
