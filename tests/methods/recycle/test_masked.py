"""Invariant 10 of recycling: a mask of ones is direct reuse, one of zeros the new base, and a small step goes down."""

from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.recycle.masked import agreement_mask, count_votes, few_rows, masked_difference
from tests.contract.bench import equal, mean_loss, state


def test_a_mask_keeps_what_goes_down_the_gradient():
    difference = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 2.0])
    gradient = torch.tensor([-3.0, 3.0, -3.0, 3.0, 1.0, 0.0])
    assert agreement_mask(difference, gradient).tolist() == [True, False, False, True, False, False]
    assert agreement_mask(difference, gradient, "keep").tolist() == [True, False, False, True, False, True]


def test_votes_are_counted_by_sign_or_added_up():
    votes = [[torch.tensor([5.0, -1.0]), None], [torch.tensor([-1.0, -1.0]), torch.tensor([2.0])],
             [torch.tensor([-1.0, 0.0]), torch.tensor([-1.0])]]  # fmt: skip
    like = [torch.zeros(2), torch.zeros(1)]
    assert [one.tolist() for one in count_votes(votes, like, "majority")] == [[-1.0, -2.0], [0.0]]
    assert [one.tolist() for one in count_votes(votes, like, "mean")] == [[3.0, -2.0], [1.0]]


def test_a_mask_of_ones_keeps_the_bits_and_one_of_zeros_nothing():
    difference = {"a": torch.tensor([0.1, -0.2]), "b": torch.tensor([3.0])}
    ones = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in difference.items()}
    assert equal(masked_difference(difference, ones), difference)
    assert masked_difference(difference, {name: ~mask for name, mask in ones.items()}) == {}
    assert masked_difference(difference, ones, scale=0.5)["b"].item() == 1.5


@pytest.mark.parametrize("kind", ["full_case", "lora_case"])
def test_in_a_model_ones_are_direct_reuse_and_zeros_the_new_base(kind, request, monkeypatch):
    case = request.getfixturevalue(kind)
    module = "anytune.methods.recycle.masked.agreement_mask"
    monkeypatch.setattr(module, lambda difference, *_: torch.ones_like(difference, dtype=torch.bool))
    ones, _ = case.prepared("masked", rows=1)
    assert equal(state(ones), state(case.outdated.install_difference(case.model()[0], case.outdated.difference())))
    direct, _ = case.prepared("direct")
    if kind == "full_case":
        assert equal(state(ones), state(direct))
    else:  # the product of the factors, added once
        merged = direct.merge_and_unload().state_dict()
        for name, tensor in ones.state_dict().items():
            torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)
    monkeypatch.setattr(module, lambda difference, *_: torch.zeros_like(difference, dtype=torch.bool))
    zeros, _ = case.prepared("masked", rows=1)
    plain, head = case.model()
    new = {name: case.outdated.head.get(name, tensor) for name, tensor in state(plain).items()}
    assert set(head) == set(case.outdated.head)
    assert equal(state(zeros), new)


@pytest.mark.parametrize("kind", ["full_case", "lora_case"])
def test_a_small_step_along_what_is_kept_lowers_the_loss_of_the_rows_that_voted(kind, request):
    case = request.getfixturevalue(kind)
    rows = few_rows(case.encoded, 2, case.run().seed)
    batch = [case.encoded.batch(rows)]
    settings = {"rows": 2, "rows_a_vote": len(rows), "vote": "mean"}
    before, after, against = (
        mean_loss(case.prepared("masked", **settings, scale=scale)[0], case.objective, batch) for scale in (0, 1e-3, 0)
    )
    assert after < before == against
    # what is left out goes the other way: the mask turned round raises the loss
    model, _ = case.prepared("masked", **settings, scale=1.0)
    kept, whole = model.state_dict(), case.outdated.difference()
    plain = {case.new.anatomy.canonical(name): tensor for name, tensor in case.model()[0].state_dict().items()}
    there = {case.new.anatomy.canonical(name): tensor for name, tensor in kept.items()}
    left_out = {name: 1e-3 * torch.where(there[name] == plain[name], tensor, 0.0) for name, tensor in whole.items()}
    assert mean_loss(case.outdated.install_difference(case.model()[0], left_out), case.objective, batch) > before


def test_the_mask_is_that_of_gradients_taken_one_row_at_a_time(full_case):
    """A naive oracle: the new base under the old head, one row after the other."""
    model = full_case.outdated.install_difference(full_case.model()[0], {}).eval()
    names = {full_case.new.anatomy.canonical(name): parameter for name, parameter in model.named_parameters()}
    rows = few_rows(full_case.encoded, 3, full_case.run().seed)
    assert len(rows) == 9
    counts = {name: torch.zeros_like(tensor) for name, tensor in full_case.outdated.difference().items()}
    for row in rows:
        batch = full_case.encoded.batch([row])
        model.zero_grad()
        full_case.objective.terms(full_case.objective.forward(model, batch), batch)["loss"].backward()
        for name, count in counts.items():
            gradient = names[name].grad
            count += torch.sign(gradient) if gradient is not None else 0.0
    wanted = {}
    for name, tensor in full_case.outdated.difference().items():
        keep = (tensor > 0) & (counts[name] < 0) | (tensor < 0) & (counts[name] > 0)
        wanted[name] = torch.where(keep, tensor, 0.0)
    found, method = full_case.prepared("masked", rows=3)
    assert equal(state(found), state(full_case.outdated.install_difference(full_case.model()[0], wanted)))
    kept = sum(int(tensor.count_nonzero()) for tensor in wanted.values())
    assert f"masked: {kept:,} of " in method.notes()[0]


def test_rows_are_drawn_by_class_and_by_the_seed(full_case):
    encoded = full_case.encoded
    rows = few_rows(encoded, 4, seed=1)
    assert sorted(encoded.labels[rows].tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(rows)) == 12
    assert rows == few_rows(encoded, 4, seed=1) != few_rows(encoded, 4, seed=2)
    assert len(few_rows(encoded, 4096, seed=1)) == len(encoded)


def test_the_model_is_left_trainable_and_without_gradients(full_case):
    model, _ = full_case.prepared("masked", rows=1)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_weights_that_change_nothing_of_the_base_are_refused(full_case):
    class Prompt:
        kind = "prompt"

        def difference(self):
            return {}

    with pytest.raises(MethodError, match="nothing to mask"):
        registry.create("recycle/masked").prepare(
            full_case.model()[0], full_case.run(outdated=Prompt(), install_outdated=len)
        )
