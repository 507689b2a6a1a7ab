from __future__ import annotations

from anytune.engine.stages import default_groups
from anytune.methods.pretrain.sequential import Sequential
from anytune.methods.protocol import Run
from anytune.models.base import load_base


def groups_with(tiny_base, head_rate):
    base = load_base(tiny_base)
    model, _ = base.pretraining_model(0)
    method = Sequential(head_rate=head_rate)
    method.prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy))
    before = default_groups(model, 0.1, 0.01)
    return before, method.param_groups(model, before)


def test_the_head_gets_a_rate_of_its_own_and_keeps_its_decay(tiny_base):
    before, after = groups_with(tiny_base, 5.0)
    rates = {name: (group["lr"], group["weight_decay"]) for group in after for name in group["names"]}
    assert rates["cls.predictions.transform.dense.weight"] == (0.5, 0.01)
    assert rates["cls.predictions.transform.dense.bias"] == (0.5, 0.0)
    assert rates["bert.encoder.layer.0.output.dense.weight"] == (0.1, 0.01)
    assert rates["bert.embeddings.word_embeddings.weight"] == (0.1, 0.01), "tied to the head, but part of the body"
    names = [name for group in after for name in group["names"]]
    assert sorted(names) == sorted(name for group in before for name in group["names"])
    for group in after:
        assert len(group["names"]) == len(group["params"])


def test_an_equal_rate_leaves_the_groups_alone(tiny_base):
    before, after = groups_with(tiny_base, 1.0)
    assert after is before
