from __future__ import annotations

from typing import Any

import pytest
import torch

from anytune.engine.stages import default_groups
from anytune.methods.pretrain.slow import Slow, rise
from tests.methods.pretrain.little_stream import RATE, Little, same


def test_the_rate_rises_in_equal_parts_and_stays():
    assert [rise(step, 3) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [rise(step, 0) for step in range(2)] == [1.0, 1.0]


class Scheduled(torch.optim.SGD):
    """Writes down the rate in force inside each step; a schedule sets it anew afterwards."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__([{**group, "planned": group["lr"]} for group in groups])
        self.seen: list[float] = []
        self.register_step_post_hook(self.look)

    def look(self, *_: Any) -> None:
        self.seen.append(self.param_groups[0]["lr"])
        for group in self.param_groups:
            group["lr"] = group["planned"]


def trained(little: Little, method: Slow) -> list[float]:
    little.prepared(method)
    names, weights = zip(*little.named().items(), strict=True)
    groups = method.param_groups(little.model, [{"names": list(names), "params": list(weights), "lr": RATE}])
    optimizer = Scheduled(groups)
    little.train([method], optimizer=optimizer, prepared=True)
    return optimizer.seen


def test_a_stage_is_trained_at_its_share_of_the_rate_to_which_it_rises(tiny_base, tiny_domain):
    found = trained(Little(tiny_base, tiny_domain, steps=6), Slow(rate=0.5, warmup=0.5))
    assert found == pytest.approx([RATE * 0.5 * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])


def test_the_rate_falls_from_stage_to_stage(tiny_base, tiny_domain):
    carried, found = {}, []
    for _ in range(3):
        little, method = (
            Little(tiny_base, tiny_domain, steps=1, carried=carried),
            Slow(rate=0.8, falling=0.5, warmup=0),
        )
        found += trained(little, method)
        carried = little.finish(method)
    assert found == pytest.approx([RATE * 0.8, RATE * 0.4, RATE * 0.2])


def test_without_a_rise_it_is_plain_training_at_another_rate(tiny_base, tiny_domain):
    slow, plain, full = (Little(tiny_base, tiny_domain) for _ in range(3))
    after = slow.train([Slow(rate=0.25, warmup=0.0)])
    optimizer = torch.optim.AdamW(default_groups(plain.model, RATE / 4, 0.1))
    assert same(after, plain.train([], optimizer=optimizer))
    assert not same(after, full.train([]))


def test_a_run_that_goes_on_rises_from_where_it_was(tiny_base, tiny_domain):
    little, method = Little(tiny_base, tiny_domain, steps=6), Slow(rate=1.0, warmup=0.5)
    little.prepared(method)
    method.load_state_dict({"step": 2})
    optimizer = Scheduled([{"names": list(little.named()), "params": list(little.named().values()), "lr": RATE}])
    little.train([method], optimizer=optimizer, prepared=True, first=2)
    assert optimizer.seen == pytest.approx([RATE * share for share in (0.75, 1, 1, 1)])
    assert method.state_dict() == {"step": 6}
