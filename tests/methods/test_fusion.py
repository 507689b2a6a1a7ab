from __future__ import annotations

import math

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods.fusion import early_fusion, fusion_weights, late_fusion


def test_weights_are_a_softmax_of_similarities_or_their_share_of_what_is_positive():
    soft = fusion_weights([0.9, 0.1, -0.5], "softmax", 0.2)
    powers = [math.exp(value / 0.2) for value in (0.9, 0.1, -0.5)]
    torch.testing.assert_close(soft, torch.tensor([one / sum(powers) for one in powers], dtype=torch.float64))
    assert fusion_weights([0.6, 0.2, -0.5], "share").tolist() == pytest.approx([0.75, 0.25, 0.0])


def test_a_low_temperature_chooses_the_nearest_and_a_high_one_none():
    assert fusion_weights([0.2, 0.7], "softmax", 1e-3).tolist() == pytest.approx([0.0, 1.0])
    assert fusion_weights([0.2, 0.7], "softmax", 1e6).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_without_similarities_all_count_the_same_and_one_alone_counts_one_however_far_it_is():
    assert fusion_weights([None, None, None, None]).tolist() == [0.25] * 4
    for way in ("softmax", "share"):
        assert fusion_weights([-0.3], way).tolist() == [1.0]


@pytest.mark.parametrize(
    ("similarities", "way", "temperature", "what"),
    [
        ([], "share", 1.0, "no prompt to fuse"),
        ([0.5, None], "share", 1.0, "1 of 2 prompts have a similarity"),
        ([0.5, math.nan], "softmax", 1.0, "nan"),
        ([0.5, 0.6], "softmax", 0.0, "temperature 0.0"),
        ([-0.5, 0.0], "share", 1.0, "no prompt is similar"),
    ],
)
def test_weights_that_cannot_be_are_errors(similarities, way, temperature, what):
    with pytest.raises(MethodError, match=what):
        fusion_weights(similarities, way, temperature)


@pytest.mark.parametrize("fuse", [early_fusion, late_fusion])
def test_a_fusion_is_the_weighted_sum_and_of_one_that_one_bit_for_bit(fuse):
    parts = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expected = sum(weight * part for weight, part in zip((0.5, 0.3, 0.2), parts, strict=True))
    torch.testing.assert_close(fuse(parts, weights), expected)
    assert fuse(parts, weights).dtype == torch.float32
    assert torch.equal(fuse(parts[:1], torch.ones(1, dtype=torch.float64)), parts[0])
    with pytest.raises(MethodError, match="shapes"):
        fuse([parts[0], parts[1][:2]], weights[:2])
