from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from anytune.methods.tune.rdrop import RDrop, doubled
from tests.methods.prepared import batch_of, prepared


def test_the_batch_is_put_under_itself_and_counts_its_items_once():
    batch = {**batch_of(), "teacher": torch.rand(4, 3), "other": torch.rand(7), "names": ["a"], "flag": True}
    made = doubled(batch)
    assert made["num_items"] == 4
    for key in ("input_ids", "attention_mask", "labels", "teacher"):
        assert torch.equal(made[key], torch.cat([batch[key], batch[key]]))
    for key in ("other", "names", "flag"):
        assert made[key] is batch[key]


def test_alpha_0_leaves_the_batch_and_the_terms_alone():
    method, batch, terms = RDrop(alpha=0.0), batch_of(), {"loss": torch.tensor(1.0)}
    assert method.prepare_batch(batch) is batch
    assert method.objective(torch.nn.Identity(), batch, None, terms) is terms


def test_the_term_is_alpha_times_half_of_both_divergences_a_mean_over_items():
    torch.manual_seed(0)
    logits, batch = torch.randn(8, 3, dtype=torch.float64), {"labels": torch.zeros(8, dtype=torch.int64)}
    p, q = logits[:4].softmax(-1), logits[4:].softmax(-1)
    naive = 0.7 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).sum() / 2 / 4
    output = SimpleNamespace(logits=logits)
    found = RDrop(alpha=0.7).objective(torch.nn.Identity(), batch, output, {})["rdrop"]
    torch.testing.assert_close(found, naive, rtol=1e-12, atol=0)


def test_a_regression_is_compared_by_the_square_of_the_difference():
    logits, batch = torch.tensor([[1.0], [2.0], [4.0], [2.0]]), {"labels": torch.zeros(4)}
    output = SimpleNamespace(logits=logits)
    assert RDrop(alpha=2.0).objective(torch.nn.Identity(), batch, output, {})["rdrop"].item() == 2.0 * (9 + 0) / 2


@pytest.mark.parametrize("kind", ["classification", "regression", "token-classification"])
def test_both_halves_learn_the_labels_and_differ_by_their_dropout_alone(tiny_base, kind):
    ready, batch = prepared(tiny_base, "tune/rdrop", kind, dropout=True), batch_of(kind)
    terms = ready.terms(batch)
    assert terms["rdrop"].item() > 1e-6
    seen = []
    plain = ready.step.plain.forward
    ready.step._forward = lambda model, batch: seen.append(plain(model, batch)) or seen[-1]
    terms = ready.terms(batch)
    [output] = seen
    assert len(output.logits) == 2 * batch["num_items"]
    if kind == "classification":
        halves = [functional.cross_entropy(half, batch["labels"]) for half in output.logits.chunk(2)]
        torch.testing.assert_close(terms["loss"], sum(halves) / 2, rtol=1e-12, atol=0)
    if kind == "token-classification":
        first, second = output.labels.chunk(2)
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["classification", "regression", "token-classification"])
def test_without_dropout_the_halves_are_equal_and_it_is_plain_training_at_twice_the_price(tiny_base, kind):
    ready, batch = prepared(tiny_base, "tune/rdrop", kind), batch_of(kind)
    terms = ready.terms(batch)
    assert terms["rdrop"].item() < 1e-24
    plain = ready.objective.terms(ready.objective.forward(ready.model, batch), batch)
    torch.testing.assert_close(terms["loss"], plain["loss"], rtol=1e-12, atol=0)
