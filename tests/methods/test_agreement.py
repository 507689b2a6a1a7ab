from __future__ import annotations

import math

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods.agreement import (
    AGREEMENTS,
    DISAGREEMENTS,
    agreement,
    centred,
    disagreement,
    effective_number,
    pooled_rows,
    unit,
    weight_entropy,
)


def rows(count=5, width=7, seed=0, dtype=torch.float64):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthonormal(count, width):
    return torch.linalg.qr(rows(width, width))[0][:count]


def gradient(loss, *given):
    current = given[0].clone().requires_grad_()
    return torch.autograd.grad(loss(current, *given[1:]), current)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", AGREEMENTS)
def test_equal_states_agree_exactly_and_pull_nowhere(form, dtype):
    given = rows(dtype=dtype)
    assert agreement(given, given.clone(), form).item() == 0.0
    assert gradient(lambda now, old: agreement(now, old, form), given, given).abs().max().item() == 0.0


def test_one_less_cosine_is_what_it_says_and_does_not_see_lengths():
    left, right = rows(), rows(seed=1)
    expected = sum(1 - torch.cosine_similarity(a, b, dim=0) for a, b in zip(left, right, strict=True)) / 5
    torch.testing.assert_close(agreement(left, right), expected)
    torch.testing.assert_close(agreement(3 * left, 0.1 * right), expected)
    assert agreement(left, -left).item() == pytest.approx(2.0)
    naive = sum(((a - b) ** 2).mean() for a, b in zip(left, right, strict=True)) / 5
    torch.testing.assert_close(agreement(left, right, "mse"), naive)


@pytest.mark.parametrize(("form", "value"), [("cos2", 1.0), ("abs", 1.0), ("dot", None), ("gram", None)])
def test_what_disagreement_gives_where_nothing_has_moved(form, value):
    given = rows()
    found = disagreement(given, given, form).item()
    push = gradient(lambda now, old: disagreement(now, old, form), given, given).norm().item()
    if value is not None:
        assert found == pytest.approx(value)
        assert push < 1e-12, "a maximum"
    else:
        assert found > 0
        assert push > 1e-3, "it pushes at once"
    if form == "dot":
        assert found == pytest.approx((given.norm(dim=1) ** 4 / 49).mean().item())


def test_squared_cosine_is_0_for_orthogonal_rows_and_1_for_parallel_ones_of_any_length_and_sign():
    basis = orthonormal(6, 7)
    assert disagreement(basis[:3], basis[3:]).item() == pytest.approx(0.0, abs=1e-28)
    for factor in (1.0, -1.0, 1e-6, -3e5):
        for form in ("cos2", "abs"):
            assert disagreement(factor * basis, basis, form).item() == pytest.approx(1.0)
    many = torch.stack([disagreement(rows(seed=n), rows(seed=n + 50)) for n in range(40)])
    assert 0 <= many.min() < many.max() <= 1


def test_over_all_pairs_rows_must_be_orthogonal_to_every_old_one():
    left, right = rows(), rows(seed=1)
    pairs = [torch.cosine_similarity(a, b, dim=0) ** 2 for a in left for b in right]
    torch.testing.assert_close(disagreement(left, right, "gram"), sum(pairs) / 25)
    basis = orthonormal(6, 7)
    assert disagreement(basis[:3], basis[3:], "gram").item() == pytest.approx(0.0, abs=1e-28)
    swapped = basis[[1, 0, 2]]
    assert disagreement(basis[:3], swapped, "cos2").item() == pytest.approx(1 / 3)
    assert disagreement(basis[:3], swapped, "gram").item() == pytest.approx(1 / 3)
    one = rows(1)
    assert disagreement(one, one, "gram").item() == pytest.approx(1.0)
    assert gradient(lambda now, old: disagreement(now, old, "gram"), one, one).norm().item() < 1e-12


def test_the_penalty_with_an_identity_wants_each_row_where_it_was_and_away_from_the_others():
    basis = orthonormal(6, 7)
    assert disagreement(basis[:3], basis[:3], "coda").item() == pytest.approx(0.0, abs=1e-28)
    assert disagreement(basis[:3], basis[3:], "coda").item() == pytest.approx(1 / 3)
    raw = rows()
    naive = sum((raw[b] @ raw[c] - float(b == c)) ** 2 for b in range(5) for c in range(5)) / 25
    torch.testing.assert_close(disagreement(raw, raw, "coda"), naive)


@pytest.mark.parametrize("form", [*AGREEMENTS, *DISAGREEMENTS])
@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_vectors_without_a_direction_give_numbers_and_finite_gradients(form, scale):
    loss = agreement if form in AGREEMENTS else disagreement
    nothing = torch.zeros(3, 4) + scale
    for left, right in ((nothing, rows(3, 4).float()), (rows(3, 4).float(), nothing), (nothing, nothing)):
        value, push = loss(left, right, form), gradient(lambda now, old: loss(now, old, form), left, right)
        assert torch.isfinite(value)
        assert torch.isfinite(push).all()
        assert push.abs().max() < 10
        if form in ("cos2", "abs", "gram"):
            assert value.item() == 0.0


@pytest.mark.parametrize("form", [*AGREEMENTS, "cos2", "abs", "dot"])
def test_rows_weigh_what_they_are_told_to_so_that_parts_add_up(form):
    loss = agreement if form in AGREEMENTS else disagreement
    left, right = rows(), rows(seed=1)
    weights = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.1], dtype=torch.float64)
    by_hand = sum(weight * loss(left[n : n + 1], right[n : n + 1], form) for n, weight in enumerate(weights))
    torch.testing.assert_close(loss(left, right, form, weights), by_hand)
    parts = [(slice(0, 2), 0.6), (slice(2, 5), 0.4)]
    added = sum(share * loss(left[part], right[part], form, weights[part] / share) for part, share in parts)
    torch.testing.assert_close(added, by_hand)
    assert loss(left, right, form, 0 * weights).item() == 0.0


@pytest.mark.parametrize("form", [*AGREEMENTS, *DISAGREEMENTS])
def test_no_rows_lose_nothing_and_no_gradient_flows_into_the_target(form):
    loss = agreement if form in AGREEMENTS else disagreement
    assert loss(torch.zeros(0, 4), torch.zeros(0, 4), form).item() == 0.0
    current, previous = rows().requires_grad_(), rows(seed=1).requires_grad_()
    loss(current, previous, form).backward()
    assert current.grad.abs().max() > 0
    assert previous.grad is None


@pytest.mark.parametrize("form", [*AGREEMENTS, *DISAGREEMENTS])
def test_under_autocast_and_from_half_precision_all_is_computed_in_fp32(form):
    loss = agreement if form in AGREEMENTS else disagreement
    left, right = rows(dtype=torch.float32), rows(seed=1, dtype=torch.float32)
    plain = loss(left, right, form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(left, right, form), plain)
    half = loss(left.bfloat16(), right.bfloat16(), form)
    assert half.dtype == torch.float32
    assert torch.equal(half, loss(left.bfloat16().float(), right.bfloat16().float(), form))


def test_the_mean_of_a_text_is_over_its_real_tokens_only():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [math.nan, 9.0]], [[5.0, 5.0], [7.0, 7.0], [7.0, 7.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert pooled_rows(hidden, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]
    hidden.requires_grad_()
    pooled_rows(hidden, mask).sum().backward()
    assert hidden.grad.tolist() == [[[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0]] * 3]


def test_what_all_rows_have_in_common_is_taken_off():
    given, shift = rows(), 100 * rows(1, seed=2)
    assert disagreement(given + shift, rows(seed=1) + shift).item() > 0.99, "raw, any two texts look alike"
    torch.testing.assert_close(centred(given + shift), centred(given))
    weights = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(weights @ centred(given, weights), torch.zeros(7, dtype=torch.float64))
    assert centred(given[:1]).abs().max().item() == 0.0


def test_units_have_length_one_or_none():
    found = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_shapes_that_differ_are_refused():
    for loss in (agreement, disagreement):
        with pytest.raises(MethodError, match=r"\[5, 7\] and \[4, 7\]"):
            loss(rows(), rows(4))
        with pytest.raises(MethodError, match="row by row"):
            loss(rows()[None], rows()[None])


def test_components_in_use_are_counted_over_texts_and_within_a_text():
    spread = torch.eye(4)  # each text its own component
    assert effective_number(spread).item() == pytest.approx(4.0)
    assert weight_entropy(spread).item() == pytest.approx(0.0)
    even = torch.tensor([[1.0, -1.0, 1.0, -1.0]]).repeat(3, 1)
    assert effective_number(even).item() == pytest.approx(4.0)
    assert weight_entropy(even).item() == pytest.approx(math.log(4))
    collapsed = torch.tensor([[0.0, 2.0, 0.0, 0.0]]).repeat(3, 1)
    assert effective_number(collapsed).item() == pytest.approx(1.0)
    assert effective_number(torch.zeros(2, 4)).item() == pytest.approx(1.0)
