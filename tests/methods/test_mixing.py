from __future__ import annotations

import torch

from anytune.methods.mixing import column_mask, mixed


def test_the_anchor_stands_where_the_mask_is_0_and_the_way_from_it_is_stretched_elsewhere():
    weight, anchor = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0]])
    assert mixed(weight, anchor, torch.tensor([[False, True]]), 0.5).tolist() == [[1.0, 9.0]]


def test_the_mean_over_masks_is_the_weight():
    weight, anchor = torch.randn(3, 50, dtype=torch.float64), torch.randn(3, 50, dtype=torch.float64)
    drawn = [mixed(weight, anchor, column_mask(1, step, 0, 50, 0.3), 0.3) for step in range(4000)]
    torch.testing.assert_close(torch.stack(drawn).mean(0), weight, rtol=0, atol=0.15)


def test_a_mask_follows_from_seed_step_and_place_alone_and_has_its_share():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    mask = column_mask(5, 3, 2, 20000, 0.3)
    assert mask.dtype == torch.bool
    assert mask.shape == (20000,)
    assert abs(mask.double().mean().item() - 0.7) < 0.02
    assert torch.equal(mask, column_mask(5, 3, 2, 20000, 0.3))
    for other in ((6, 3, 2), (5, 4, 2), (5, 3, 1)):
        assert not torch.equal(mask, column_mask(*other, 20000, 0.3))
    assert torch.equal(before, torch.get_rng_state()), "torch's own generator was drawn from"
