from __future__ import annotations

import pytest
import torch

from anytune.engine.stages import method_groups
from anytune.methods import registry
from anytune.methods.transfer.mpt import factored, product
from anytune.models.soft_prompts import prompt_of
from tests.methods.transfer.given_prompts import with_sources
from tests.methods.tune.by_hand import same


def mpt(**settings):
    return registry.create("transfer/mpt", {"dropout": 0.0, **settings})


# ---------------------------------------------------------------------- on tensors


def loss(sources, shared, left, right):
    return sum(
        ((one - shared * torch.outer(u, v)) ** 2).sum().item() for one, u, v in zip(sources, left, right, strict=True)
    )


def test_what_is_a_shared_prompt_times_factors_is_found_again():
    drawn = torch.Generator().manual_seed(3)
    shared = torch.randn(4, 6, dtype=torch.float64, generator=drawn)
    left = 1 + 0.3 * torch.rand(3, 4, dtype=torch.float64, generator=drawn)
    right = 1 + 0.3 * torch.rand(3, 6, dtype=torch.float64, generator=drawn)
    sources = torch.stack([shared * torch.outer(u, v) for u, v in zip(left, right, strict=True)])
    parts = factored(sources, rounds=200)
    assert loss(sources, *parts) < 1e-12 * (sources**2).sum().item()
    assert parts[1].mean().item() == pytest.approx(1)
    assert parts[2].mean().item() == pytest.approx(1)


def test_no_round_makes_it_worse_and_none_is_the_mean():
    sources = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    losses = [loss(sources, *factored(sources, rounds)) for rounds in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    shared, left, right = factored(sources, 0)
    assert torch.equal(shared, sources.mean(0))
    assert left.eq(1).all()
    assert right.eq(1).all()


def test_entries_that_nothing_determines_stay_finite():
    sources = torch.randn(2, 3, 4)
    sources[:, 1], sources[:, :, 2] = 0, 0
    assert all(torch.isfinite(part).all() for part in factored(sources))
    assert all(torch.isfinite(part).all() for part in factored(torch.zeros(2, 3, 4)))


def test_the_product_is_entry_by_entry():
    shared, left, right = torch.randn(2, 3), torch.randn(2, 2), torch.randn(2, 3)
    found = product(shared, left, right)
    for row in range(2):
        for column in range(3):
            factor = sum(left[row, k] * right[k, column] for k in range(2))
            torch.testing.assert_close(found[row, column], shared[row, column] * factor)


# ---------------------------------------------------------------------- the method


@pytest.mark.parametrize("rank", [1, 3])
def test_it_starts_at_the_mean_of_the_sources_bit_for_bit(tiny_base, tiny_task, rank):
    small = with_sources(tiny_base, tiny_task, double=False)
    small.model = mpt(rank=rank).prepare(small.model, small.run)
    mean = torch.stack([source.values.double() for source in small.run.sources]).mean(0).float()
    assert torch.equal(prompt_of(small.model).values(), mean)
    assert prompt_of(small.model).left.shape == (3, rank)


def test_factored_finds_what_sources_share_but_for_factors_and_the_mean_does_not(tiny_base, tiny_task):
    beyond = {}
    for shared in ("factored", "mean"):
        small = with_sources(tiny_base, tiny_task, 3, double=False)
        common = small.run.sources[0].values.clone()
        for number, source in enumerate(small.run.sources):
            left, right = torch.linspace(1, 1 + number, 3), torch.linspace(2 - number / 2, 1, common.shape[1])
            source.values.copy_(common * torch.outer(left, right))
        small.model = mpt(shared=shared, rounds=200).prepare(small.model, small.run)
        # what is common is known but for a factor of each place and one of each value
        sizes = torch.linalg.svdvals((prompt_of(small.model).table / common).double())
        beyond[shared] = (sizes[1] / sizes[0]).item()
    assert beyond["factored"] < 1e-4 < 1e-2 < beyond["mean"]


def test_gradients_are_those_of_the_product_and_steps_move_all_parts(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, double=False)
    method = mpt()
    small.model = method.prepare(small.model, small.run)
    started = {name: weight.detach().clone() for name, weight in small.model.named_parameters()}
    after = small.train([method], prepared=True)
    moved = {name for name in after if not torch.equal(after[name], started[name])}
    assert moved == {"soft_prompt.table", "soft_prompt.left", "soft_prompt.right", *small.head_names}
    prompt = prompt_of(small.model)
    assert torch.equal(prompt.values(), prompt.table * (prompt.left @ prompt.right))


def test_a_frozen_shared_prompt_changes_by_factors_of_places_and_values_alone(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, steps=6, double=False)
    after = small.train([mpt(shared_rate=0.0)])
    mean = torch.stack([source.values for source in small.run.sources]).mean(0)
    assert torch.equal(after["soft_prompt.table"], mean)
    assert not prompt_of(small.model).table.requires_grad, "it has a gradient for nothing"
    factors = prompt_of(small.model).values().detach() / mean
    assert (factors - 1).abs().max() > 0.01
    assert torch.linalg.matrix_rank(factors.double(), rtol=1e-4) == 1


def test_factors_have_no_decay_and_the_shared_prompt_its_own_rate(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task)
    method = mpt(shared_rate=0.25)
    model = method.prepare(small.model, small.run)
    found = {name: group for group in method_groups(model, [method], 0.01, 0.1) for name in group["names"]}
    assert found["soft_prompt.table"]["peak"] == pytest.approx(0.0025)
    assert found["soft_prompt.table"]["weight_decay"] == 0.1
    for part in ("left", "right"):
        assert found[f"soft_prompt.{part}"]["peak"] == 0.01
        assert found[f"soft_prompt.{part}"]["weight_decay"] == 0
    assert found["classifier.weight"]["weight_decay"] == 0.1


def test_a_run_is_the_same_again_and_draws_nothing_from_torch(tiny_base, tiny_task):
    found = []
    for stir in (0, 5):
        torch.manual_seed(stir)
        small, before = with_sources(tiny_base, tiny_task, double=False), torch.get_rng_state()
        found.append(small.train([mpt(rank=2)]))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*found)
