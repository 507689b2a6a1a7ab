from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from anytune.errors import DeltaError
from anytune.models.interpolation import POINTS, barrier, grid, interpolate


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(7, 5, generator=generator),
        "zero": torch.tensor([-0.0, 0.0, 1.0]) * (1 if seed else -1),
        "half": torch.randn(4, generator=generator).bfloat16(),
        "position_ids": torch.arange(6),
        "flag": torch.tensor([True, False]),
    }


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and torch.equal(torch.signbit(left[name]), torch.signbit(right[name]))
        for name in left
        if left[name].dtype != torch.bool
    )


def test_the_ends_are_the_models_bit_for_bit_integer_buffers_and_signed_zeros_included():
    first, second = state(0), state(1)
    assert same(interpolate(first, second, 0), first)
    assert same(interpolate(first, second, 1), second)
    assert interpolate(first, second, 0.4)["position_ids"].tolist() == list(range(6))


@given(some.floats(0, 1))
def test_a_path_between_equal_models_is_that_model(x):
    assert same(interpolate(state(3), state(3), x), state(3))


@pytest.mark.parametrize("x", grid())
def test_walking_back_passes_the_same_points(x):
    there, back = interpolate(state(1), state(2), x), interpolate(state(2), state(1), 1.0 - x)
    for name, tensor in there.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, back[name], rtol=2e-7 if tensor.dtype == torch.float32 else 8e-3, atol=1e-7
            )


def test_a_point_is_the_naive_sum():
    first, second = state(1), state(2)
    expected = [[0.75 * a + 0.25 * b for a, b in zip(x, y, strict=True)] for x, y in
                zip(first["weight"].tolist(), second["weight"].tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(interpolate(first, second, 0.25)["weight"], torch.tensor(expected))


def test_the_published_grid_has_26_points_with_both_ends():
    points = grid()
    assert len(points) == POINTS == 26
    assert (points[0], points[-1]) == (0.0, 1.0)
    assert points[1] == pytest.approx(0.04)


def test_the_barrier_is_zero_for_equal_ends_and_the_rise_above_the_line_otherwise():
    assert barrier([0.3] * 26) == 0.0
    assert barrier([1.0, 0.5, 2.0]) == 0.0
    assert barrier([1.0, 2.0, 2.0]) == pytest.approx(0.5)
    assert barrier([1.0, 2.0]) == 0.0


def test_a_path_whose_losses_are_not_numbers_has_no_barrier_of_zero():
    nan, far = float("nan"), float("inf")
    for losses in ([1.0, nan, 1.0], [1.0, 2.0, nan, 1.0], [nan, nan], [nan, 1.0, 1.0], [far, 1.0, 1.0]):
        assert math.isnan(barrier(losses))
    assert barrier([1.0, far, 1.0]) == far


def test_models_that_do_not_match_are_refused_with_the_names():
    first, second = state(0), state(1)
    with pytest.raises(DeltaError, match="position_ids"):
        interpolate(first, {**second, "position_ids": torch.arange(6) + 1}, 0.5)
    with pytest.raises(DeltaError, match="weight"):
        interpolate(first, {**second, "weight": torch.zeros(2, 2)}, 0.5)
    with pytest.raises(DeltaError, match=r"x = 1\.5"):
        interpolate(first, second, 1.5)


def test_the_ends_of_a_path_between_models_have_the_models_own_losses(tiny_base, other_base):
    from anytune.models.base import load_base

    bases = [load_base(tiny_base), load_base(other_base)]
    models = [base.task_model("classification", ["a", "b", "c"], seed)[0] for seed, base in enumerate(bases)]
    ids = torch.arange(5, 45).reshape(4, 10)
    labels = torch.tensor([0, 1, 2, 0])

    def loss(model) -> float:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.item()

    own = [loss(model) for model in models]
    first, second = ({name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models)
    losses = []
    for x in grid():
        models[0].load_state_dict(interpolate(first, second, x))
        losses.append(loss(models[0]))
    assert (losses[0], losses[-1]) == (own[0], own[1])
    assert barrier(losses) >= 0.0
    assert barrier([own[0]] * len(grid())) == 0.0
