from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from anytune.methods.consistency import symmetric_divergence
from anytune.methods.tune.smart import ascended
from tests.methods.prepared import batch_of, prepared

SETTINGS = {"weight": 2.0, "bregman": 3.0, "eps": 0.03, "step_size": 0.02, "noise": 0.02, "momentum": 0.6}


def answer(model, batch, change=0.0):
    words = model.bert.embeddings.word_embeddings(batch["input_ids"])
    return model(inputs_embeds=words + change, attention_mask=batch["attention_mask"]).logits


def naive(model, average, batch, change, steps):
    """SMART by ``inputs_embeds``, for BERT alone."""
    clean = answer(model, batch)
    for _ in range(steps):
        change = change.detach().requires_grad_()
        far = symmetric_divergence(answer(model, batch, change), clean.detach())
        (gradient,) = torch.autograd.grad(far, change)
        unit = (gradient / gradient.abs().max(-1, keepdim=True).values).nan_to_num()  # padding has none
        change = (change + SETTINGS["step_size"] * unit).clamp(-SETTINGS["eps"], SETTINGS["eps"]).detach()
    with torch.no_grad():
        before = answer(average, batch)
    return (
        functional.cross_entropy(clean, batch["labels"])
        + SETTINGS["weight"] * symmetric_divergence(answer(model, batch, change), clean)
        + SETTINGS["bregman"] * symmetric_divergence(clean, before)
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_three_steps_are_those_of_the_naive_method(tiny_base, steps):
    ready = prepared(tiny_base, "tune/smart", **SETTINGS, steps=6)
    ready.method.steps = steps
    other, average = copy.deepcopy(ready.model), copy.deepcopy(ready.model).eval()
    batch = batch_of()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.3) for model in (ready.model, other)]
    for number in range(3):
        torch.manual_seed(number)
        change = SETTINGS["noise"] * torch.randn(4, 6, 32, dtype=torch.float64)
        torch.manual_seed(number)
        if number:
            ready.method.before_step(ready.model)
        terms = ready.terms(batch)
        expected = naive(other, average, batch, change, steps)
        torch.testing.assert_close(sum(terms.values()), expected, rtol=1e-10, atol=0)
        assert (terms["bregman"].item() > 0) == (number > 0)
        for optimizer, loss in zip(optimizers, (sum(terms.values()), expected), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ready.method.after_step(ready.model)
        with torch.no_grad():
            for own, now in zip(average.parameters(), other.parameters(), strict=True):
                own.mul_(SETTINGS["momentum"]).add_(now, alpha=1 - SETTINGS["momentum"])
        for one, two in zip(ready.model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_a_step_is_bounded_entry_by_entry_and_a_flat_place_stays():
    change, gradient = torch.tensor([[0.0, 0.02], [0.01, -0.03]]), torch.tensor([[4.0, -1.0], [0.0, 0.0]])
    torch.testing.assert_close(ascended(change, gradient, 0.04, 0.025), torch.tensor([[0.025, 0.01], [0.01, -0.025]]))


def test_the_search_leaves_no_gradient_on_any_weight(tiny_base):
    ready = prepared(tiny_base, "tune/smart", **SETTINGS)
    ready.terms(batch_of())
    assert all(parameter.grad is None for parameter in ready.model.parameters())


def test_what_it_found_is_worse_than_noise_of_the_same_size(tiny_base):
    settings = {"weight": 1.0, "bregman": 0.0, "eps": 0.05, "noise": 1e-3, "step_size": 0.02, "steps": 8}
    ready, batch = prepared(tiny_base, "tune/smart", steps=6), batch_of()
    for name, value in settings.items():
        setattr(ready.method, name, value)
    torch.manual_seed(0)
    found = ready.terms(batch)["adversarial"].item()
    with torch.no_grad():
        clean = answer(ready.model, batch)
        signs = [torch.randn(4, 6, 32, dtype=torch.float64).sign() for _ in range(20)]
        noisy = [symmetric_divergence(answer(ready.model, batch, 0.05 * sign), clean).item() for sign in signs]
    assert found > 2 * max(noisy)


@pytest.mark.parametrize("kind", ["regression", "token-classification"])
def test_other_kinds_of_task_have_both_terms(tiny_base, kind):
    ready = prepared(tiny_base, "tune/smart", kind, **SETTINGS)
    with torch.no_grad():
        ready.model.classifier.weight.mul_(1.5)
    terms = ready.terms(batch_of(kind))
    assert terms["adversarial"].item() > 0
    assert terms["bregman"].item() > 0


def test_each_term_can_be_left_out(tiny_base):
    assert set(prepared(tiny_base, "tune/smart", bregman=0.0).terms(batch_of())) == {"loss", "adversarial"}
    assert set(prepared(tiny_base, "tune/smart", weight=0.0).terms(batch_of())) == {"loss", "bregman"}


def test_the_average_survives_a_checkpoint(tiny_base):
    ready, again = (prepared(tiny_base, "tune/smart", **SETTINGS) for _ in range(2))
    with torch.no_grad():
        ready.model.classifier.weight.mul_(2.0)
    ready.method.after_step(ready.model)
    assert again.method.state_dict().keys() == {"average"}
    fresh = prepared(tiny_base, "tune/smart", **SETTINGS).method
    fresh.prepare(ready.base.task_model("classification", ("a", "b", "c"), 3)[0], ready.run)
    assert fresh.state_dict() == {"average": {}}
    fresh.load_state_dict(ready.method.state_dict())
    fresh.before_step(ready.model)  # does not begin anew
    for name, tensor in ready.method.state_dict()["average"].items():
        assert torch.equal(tensor, fresh.state_dict()["average"][name])
    assert not torch.equal(fresh.state_dict()["average"]["classifier.weight"], ready.model.classifier.weight)
