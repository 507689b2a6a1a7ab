"""What holding entries through a step relies on: torch's step can be called without the hooks hung on it."""

from __future__ import annotations

import pytest
import torch

from tests.canaries.sentence import assumption


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_a_step_without_its_hooks(kind):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], lr=0.1)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    weight.grad = torch.ones(2)
    with assumption(
        "torch no longer keeps an optimizer's own step behind its hooks as step.__wrapped__: methods/holding.py makes "
        "a step in parts with it"
    ):
        with torch.no_grad():
            kind.step.__wrapped__(optimizer)
        assert not called
        assert (weight < 1).all()
        optimizer.step()
        assert called == ["pre", "post"]
