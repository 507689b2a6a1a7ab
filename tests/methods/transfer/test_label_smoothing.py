from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.objective import Regression
from anytune.methods.protocol import Run
from anytune.methods.transfer.label_smoothing import above_the_mean
from anytune.models.base import load_base
from tests.methods.prepared import batch_of, prepared


def naive(logits, labels, share):
    """Cross-entropy against targets written out."""
    classes = logits.shape[1]
    targets = torch.full_like(logits, share / classes)
    for row, label in enumerate(labels.tolist()):
        targets[row, label] += 1 - share
    return -(targets * logits.softmax(-1).log()).sum(dim=1).mean()


@pytest.mark.parametrize("kind", ["classification", "token-classification"])
def test_loss_and_gradients_are_those_of_targets_written_out(tiny_base, kind):
    ready = prepared(tiny_base, "transfer/label_smoothing", kind, share=0.3)
    batch = batch_of(kind)
    terms = ready.terms(batch)
    output = ready.objective.forward(ready.model, batch)
    labels = batch["labels"] if kind == "classification" else output.labels
    expected = naive(output.logits, labels, 0.3)
    torch.testing.assert_close(sum(terms.values()), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["loss"], functional.cross_entropy(output.logits, labels), rtol=0, atol=0)
    weights = [weight for weight in ready.model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(sum(terms.values()), weights, allow_unused=True)
    for one, other in zip(found, torch.autograd.grad(expected, weights, allow_unused=True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_it_is_torchs_own_at_any_size_of_logits():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) * 300
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    found = functional.cross_entropy(logits, labels) + 0.2 * above_the_mean(logits, labels)
    torch.testing.assert_close(found, functional.cross_entropy(logits, labels, label_smoothing=0.2))


def test_parts_of_a_batch_add_up_and_no_items_give_nothing():
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    parts = above_the_mean(logits[:2], labels[:2]) * 2 / 6 + above_the_mean(logits[2:], labels[2:]) * 4 / 6
    torch.testing.assert_close(parts, above_the_mean(logits, labels), rtol=1e-12, atol=0)
    nothing = above_the_mean(logits[:0], labels[:0])
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, logits)[0].abs().sum() == 0


def test_a_share_of_0_adds_no_term(tiny_base):
    assert set(prepared(tiny_base, "transfer/label_smoothing", share=0.0).terms(batch_of())) == {"loss"}


def test_a_regression_is_refused_before_and_in_training(tiny_base):
    base = load_base(tiny_base)
    run = Run(seed=0, steps=1, anatomy=base.anatomy)
    method = registry.create("transfer/label_smoothing")
    model = torch.nn.Linear(1, 1)
    assert method.prepare(model, run) is model
    with pytest.raises(MethodError, match=r"share = 0\.1 was asked for on a regression"):
        method.objective(model, batch_of("regression"), None, {})
    run.objective = Regression()
    with pytest.raises(MethodError, match="asked for on a regression") as caught:
        method.prepare(model, run)
    assert caught.value.fix
    registry.create("transfer/label_smoothing", {"share": 0.0}).prepare(model, run)
