from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.models import difference as arithmetic
from anytune.models.difference import (
    add,
    changed_entries,
    changed_rows,
    from_entries,
    from_rows,
    put,
    same_bits,
    subtract,
)

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
NEAR = st.floats(-2, 2, width=32)
PAIRS = st.lists(st.one_of(st.tuples(ANY, ANY), st.tuples(NEAR, NEAR)), min_size=1, max_size=24)
SPECIAL = [(0.0, -0.0), (-0.0, 0.0), (-0.0, -0.0), (1e-45, -1e-45), (1e-40, 3.4e38), (3.4e38, -3.4e38), (1.0, 1.0)]


def restored(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    found = subtract(base, tuned)
    if found is None:
        return base.to(tuned.dtype)
    return put(add(base, found.values, tuned.dtype), found.index, found.exact)


def naive_sum(base: float, value: float, scale: float = 1.0) -> np.float32:
    """One entry at a time in numpy: sum in fp64, rounded once; the base's bits where nothing is added."""
    moved = np.float64(value) * np.float64(scale)
    return np.float32(base) if moved == 0 else np.float32(np.float64(np.float32(base)) + moved)


@settings(max_examples=150, deadline=None)
@given(PAIRS.map(lambda pairs: pairs + SPECIAL))
def test_base_and_difference_give_the_tuned_bits_for_any_floats(pairs):
    base, tuned = torch.tensor(pairs, dtype=torch.float32).T.contiguous()
    assert bool(same_bits(restored(base, tuned), tuned).all())


@settings(max_examples=80, deadline=None)
@given(PAIRS)
def test_bf16_bases_fp64_weights_and_bf16_weights_come_back_exactly_too(pairs):
    base, tuned = torch.tensor(pairs, dtype=torch.float64).clamp(-1e38, 1e38).T.contiguous()
    for stored, run in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64),
                        (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float32)):  # fmt: skip
        assert bool(same_bits(restored(base.to(stored), tuned.to(run)), tuned.to(run)).all())


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.sampled_from([1.0, 0.5, -1.0, 0.3]))
def test_the_arithmetic_agrees_with_a_naive_one_entry_at_a_time(pairs, scale):
    pairs = [(b, t) for b, t in pairs if abs(b) < 1e38 and abs(t) < 1e38] or [(1.0, 2.0)]
    base, tuned = torch.tensor(pairs, dtype=torch.float32).T.contiguous()
    found = subtract(base, tuned)
    if found is None:
        return
    expected = [np.float32(np.float64(np.float32(t)) - np.float64(np.float32(b))) for b, t in pairs]
    assert np.array_equal(found.values.numpy(), np.array(expected, dtype=np.float32))
    total = add(base, found.values, torch.float32, scale)
    naive = np.array([naive_sum(b, v, scale) for (b, _), v in zip(pairs, expected, strict=True)])
    assert np.array_equal(total.numpy().view(np.int32), naive.view(np.int32))


def test_fp32_arithmetic_would_not_restore_tuned_weights_and_ours_does():
    generator = torch.Generator().manual_seed(0)
    base, far, noise = (torch.randn(100_000, generator=generator) * 0.02 for _ in range(3))
    for tuned, at_most in ((far, 0.5), (base * 1.01 + noise * 0.1, 0.02)):
        assert float((base + (tuned - base) != tuned).float().mean()) > 0.005
        assert 0 < len(subtract(base, tuned).index) < at_most * len(tuned)
        assert bool(same_bits(restored(base, tuned), tuned).all())


@settings(max_examples=40, deadline=None)
@given(PAIRS.map(lambda pairs: pairs + SPECIAL), st.integers(1, 4))
def test_the_size_of_the_pieces_changes_nothing(pairs, chunk):
    base, tuned = torch.tensor(pairs, dtype=torch.float32).clamp(-1e38, 1e38).T.contiguous()
    whole, total = subtract(base, tuned), None
    before = arithmetic.CHUNK
    arithmetic.CHUNK = chunk
    try:
        pieces = subtract(base, tuned)
        total = None if whole is None else add(base, whole.values, torch.float32)
    finally:
        arithmetic.CHUNK = before
    if whole is None:
        assert pieces is None
        return
    assert torch.equal(whole.values, pieces.values)
    assert torch.equal(whole.index, pieces.index)
    assert bool(same_bits(total, add(base, whole.values, torch.float32)).all())


def test_an_unchanged_tensor_has_no_difference_and_a_changed_sign_of_zero_has_one():
    base = torch.tensor([0.0, -0.0, 1.5])
    assert subtract(base, base.clone()) is None
    found = subtract(base, torch.tensor([-0.0, -0.0, 1.5]))
    assert not found.values.any()
    assert found.index.tolist() == [0]


def test_scale_zero_and_zero_differences_leave_the_bits_of_the_base():
    base = torch.tensor([-0.0, 1e-45, 3.0])
    assert bool(same_bits(add(base, torch.tensor([1.0, 1.0, 1.0]), torch.float32, 0.0), base).all())
    assert bool(same_bits(add(base, torch.zeros(3), torch.float32), base).all())


def test_a_difference_too_large_for_fp32_is_kept_in_fp64():
    found = subtract(torch.tensor([3.4e38, 1.0]), torch.tensor([-3.4e38, 2.0]))
    assert found.values.dtype == torch.float64
    assert found.values[1] == 1.0


@pytest.mark.parametrize(("changed", "kept"), [([], True), ([1], True), ([0, 3], True), ([0, 1, 2], False)])
def test_tables_with_at_most_half_of_their_rows_changed_are_kept_as_rows(changed, kept):
    values = torch.zeros(4, 3)
    values[changed, 1] = 0.5
    rows = changed_rows(values)
    assert (rows is not None) == kept
    if kept:
        assert rows.tolist() == changed
        assert torch.equal(from_rows(rows, values[rows], 4), values)


def test_vectors_and_single_rows_are_not_kept_as_rows():
    assert changed_rows(torch.zeros(5)) is None
    assert changed_rows(torch.zeros(1, 5)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 4), (24,), (), (2, 3, 4), (0, 5)])
def test_entries_and_their_places_give_the_tensor_bit_for_bit(shape, dtype):
    values = torch.zeros(shape, dtype=dtype)
    if values.numel():
        values.view(-1)[0] = 2.5
    if values.numel() > 1:
        values.view(-1)[[3, 11]] = torch.tensor([-0.0, 5e-324], dtype=torch.float64).to(dtype)
    index = changed_entries(values)
    assert index.tolist() == [place for place, value in enumerate(values.reshape(-1).tolist())
                              if value != 0 or str(value) == "-0.0"]  # fmt: skip
    again = from_entries(index.to(torch.int32), values.reshape(-1)[index], shape)
    assert again.dtype == dtype
    assert again.shape == values.shape
    assert bool(same_bits(again, values).all())
