"""Memory beside plain training's, counted tensor by tensor at its peak, in bytes for each weight that takes part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytune.methods import create
from benchmarks.live_bytes import LiveBytes
from tests.methods.tune.subnetworks import Training

WIDTH, DEPTH = 128, 16
ENTRIES = DEPTH * WIDTH * WIDTH


def deep_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])


def loss(model, step):
    generator = torch.Generator().manual_seed(step)
    return model(torch.randn(4, WIDTH, generator=generator)).square().mean()


def peak(methods) -> float:
    model = deep_net()
    with LiveBytes() as live:
        Training(methods, model=model, loss=loss, steps=50, fused=True).go(14)
    return live.peak / ENTRIES


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({}, 3.9, 4.02), ({"freeze": "grad"}, 3.9, 4.02), ({"scope": "global"}, 3.9, 4.02),
        ({"masks": "bits"}, 3.9, 4.02), ({"keep": 0.1}, 3.9, 4.02),
        ({"variant": "mix"}, 12.5, 13.05), ({"variant": "mix", "freeze": "grad"}, 12.5, 13.05),
        ({"variant": "mix", "masks": "bits"}, 12.0, 12.3), ({"variant": "mix", "anchor": "bf16"}, 10.5, 11.3),
        ({"keep": 1.0}, 0, 0), ({"variant": "mix", "keep": 1.0}, 0, 0),
    ],
    ids=str,
)  # fmt: skip
def test_the_peak_of_dps_in_bytes_for_each_weight(settings, least, most):
    method = create("dps", {"stage_steps": 4, **settings})
    assert least <= peak([method]) - peak([]) <= most


def test_the_counter_counts_births_and_deaths_and_no_views():
    with LiveBytes() as live:
        kept = torch.zeros(100)
        view = kept.view(10, 10)
        view.add_(1)
        assert live.now == 400
        other = torch.ones(50)
        assert (live.now, live.peak) == (600, 600)
        del other
        assert (live.now, live.peak) == (400, 600)
        before = live.now
        (kept * 2).sum()
        assert live.now == before
        assert live.peak > 600
    del kept, view
    assert live.now == 0
