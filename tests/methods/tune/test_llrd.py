from __future__ import annotations

import pytest
import torch

from anytune.engine import method_groups
from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.heights import depths_below_head
from anytune.methods.tune.llrd import LayerwiseDecay, split_group
from anytune.methods.tune.reinit import Reinit
from anytune.methods.tune.top_k_layers import TopKLayers
from tests.contract.bench import Bench, equal
from tests.contract.conftest import bench  # noqa: F401
from tests.methods.prepared import prepared_model as prepared
from tests.models.kinds import KINDS, VARIANTS, make_kind


def rates(model, methods, decay=0.1) -> dict[str, float]:
    groups = method_groups(model, methods, 1.0, decay)
    parameters = dict(model.named_parameters())
    for group in groups:  # names and parameters stay side by side
        assert [parameters[name] is one for name, one in zip(group["names"], group["params"], strict=True)]
        assert all(parameters[name] is one for name, one in zip(group["names"], group["params"], strict=True))
        assert group["peak"] == group["lr"]
        assert {one.ndim > 1 for one in group["params"]} == {group["weight_decay"] == decay}
    found = {name: group["lr"] for group in groups for name in group["names"]}
    assert sum(len(group["names"]) for group in groups) == len(found)
    return found


def test_a_group_is_split_by_depth_and_keeps_the_rest():
    group = {"names": ["a", "b", "c"], "params": [1, 2, 3], "lr": 2.0, "weight_decay": 0.1}
    high, low = split_group(group, {"a": 2, "b": 0, "c": 2}, 0.5)
    assert high == {"names": ["b"], "params": [2], "lr": 2.0, "weight_decay": 0.1}
    assert low == {"names": ["a", "c"], "params": [1, 3], "lr": 0.5, "weight_decay": 0.1}


def test_each_block_learns_at_its_rate_and_head_and_pooler_at_the_full_one(tiny_base):
    method = LayerwiseDecay(decay=0.5)
    model, _ = prepared(tiny_base, method)
    found = rates(model, [method])
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, rate in found.items():
        expected = 1.0
        for part, value in ((".layer.1.", 0.5), (".layer.0.", 0.25), (".embeddings.", 0.125)):
            expected = value if part in name else expected
        assert rate == expected, name
    assert found["bert.pooler.dense.weight"] == found["classifier.weight"] == 1.0


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_every_kind_has_blocks_below_its_head_and_embeddings_below_them(kind, tmp_path):
    model, run = prepared(make_kind(kind, tmp_path), task="generation" if kind.startswith("t5") else "classification")
    depths = depths_below_head(model, run.anatomy)
    assert set(depths.values()) == {0, 1, 2, 3}
    for name, depth in depths.items():
        counted = run.anatomy.depth(name)  # 0 for embeddings, i + 1 for block i, None for what follows
        assert depth == (0 if counted is None else 3 - counted), name


def test_adapters_learn_at_the_rate_of_their_block(tiny_base):
    methods = [registry.create("tune/lora"), LayerwiseDecay(decay=0.5)]
    model, _ = prepared(tiny_base, *methods)
    found = rates(model, methods)
    assert {rate for name, rate in found.items() if ".layer.1." in name} == {0.5}
    assert {rate for name, rate in found.items() if ".layer.0." in name} == {0.25}
    assert {rate for name, rate in found.items() if ".layer." not in name} == {1.0}


def test_with_the_head_alone_there_is_nothing_to_decay(tiny_base):
    methods = [TopKLayers(k=0), LayerwiseDecay()]
    model, _ = prepared(tiny_base, *methods)
    with pytest.raises(MethodError, match="llrd found no trained weight"):
        rates(model, methods)
    methods[1].decay = 1.0
    assert set(rates(model, methods).values()) == {1.0}


def test_with_top_k_layers_only_the_trained_blocks_have_rates(tiny_base):
    for methods in ([TopKLayers(k=1), LayerwiseDecay(decay=0.5)], [LayerwiseDecay(decay=0.5), TopKLayers(k=1)]):
        model, _ = prepared(tiny_base, *methods)
        found = rates(model, methods)
        assert {rate for name, rate in found.items() if ".layer.1." in name} == {0.5}
        assert not any(".layer.0." in name or ".embeddings." in name for name in found)


def test_with_reinit_both_do_what_they_do_alone(bench: Bench):  # noqa: F811
    def run(*methods):
        return bench.loop("tune/full", methods=list(methods))

    both, only_drawn = run(Reinit(), LayerwiseDecay(decay=0.2)), run(Reinit())
    assert equal(both.before, only_drawn.before), "the blocks are drawn alike"
    assert not equal(both.after, only_drawn.after), "the rates are not"
    assert equal(both.after, run(LayerwiseDecay(decay=0.2), Reinit()).after), "in either order"

    def moved(made, part):
        names = [name for name in made.after if part in name and name.endswith("dense.weight")]
        return sum(float((made.after[name] - made.before[name]).abs().mean()) for name in names)

    # AdamW's steps are as large as the rate, so what lies at depth d moves about decay^d as far
    for part, share in ((".layer.1.", 0.2), (".layer.0.", 0.04)):
        assert moved(both, part) == pytest.approx(share * moved(only_drawn, part), rel=0.3)


def test_with_top_k_layers_the_frozen_blocks_stay_bit_for_bit(bench: Bench):  # noqa: F811
    made = bench.loop("tune/full", methods=[TopKLayers(k=1), LayerwiseDecay(decay=0.5)])
    for name, tensor in made.after.items():
        frozen = ".layer.0." in name or ".embeddings." in name
        assert torch.equal(tensor, made.before[name]) == frozen, name
