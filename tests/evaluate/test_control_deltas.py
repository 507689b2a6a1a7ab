"""What stands in for an outdated delta: its size, its head, and products of LoRAs, against naive sums."""

from __future__ import annotations

import pytest
import torch

from anytune.errors import DeltaError
from anytune.evaluate.control_deltas import body_norm, mean_delta, product_norm, random_delta, with_body_of
from anytune.manifests import BaseIdentity
from anytune.models.adapters import AdapterDelta
from anytune.models.delta import FullDelta

BASE = BaseIdentity(backbone="b", config="c", vocabulary="v", name="base")
A, B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"


def full(seed: int, rows: int = 4, **difference) -> FullDelta:
    draw = torch.Generator().manual_seed(seed)
    table = torch.zeros(5, 3)
    table[:2] = torch.randn(2, 3, generator=draw)
    own = {"words": table, "w": torch.randn(rows, 3, generator=draw), **difference}
    body = {name: ("float32", tuple(tensor.shape)) for name, tensor in own.items()}
    corrections = {"w": (torch.tensor([0]), torch.tensor([1.0]))}
    return FullDelta(BASE, "bert", own, corrections, {"head": torch.randn(2, generator=draw)}, body)


def lora(seed: int, r: int = 2, **config) -> AdapterDelta:
    draw = torch.Generator().manual_seed(seed)
    tensors = {A: torch.randn(r, 5, generator=draw), B: torch.randn(4, r, generator=draw),
               "base_model.model.classifier.weight": torch.randn(3, 5, generator=draw)}  # fmt: skip
    return AdapterDelta({"peft_type": "LORA", "r": r, "lora_alpha": 8, **config}, tensors)


def prompt(seed: int) -> AdapterDelta:
    draw = torch.Generator().manual_seed(seed)
    tensors = {"prompt_embeddings": torch.randn(3, 6, generator=draw), "base_model.head": torch.zeros(2)}
    return AdapterDelta({"peft_type": "PREFIX_TUNING"}, tensors)


def product(delta: AdapterDelta) -> torch.Tensor:
    rank = delta.config["r"]
    scaling = delta.config["lora_alpha"] / (rank**0.5 if delta.config.get("use_rslora") else rank)
    return scaling * delta.tensors[B].double() @ delta.tensors[A].double()


def test_noise_has_each_tensors_norm_and_leaves_alone_what_was_left_alone():
    own = full(0)
    noise = random_delta(own, 7)
    for name, tensor in own.difference.items():
        assert noise.difference[name].norm() == pytest.approx(float(tensor.norm()), rel=1e-6)
        assert torch.equal(noise.difference[name] == 0, tensor == 0)
        assert not torch.equal(noise.difference[name], tensor)
    assert noise.corrections == {}
    assert torch.equal(noise.head["head"], own.head["head"])
    again, other = random_delta(own, 7), random_delta(own, 8)
    assert all(torch.equal(noise.difference[name], again.difference[name]) for name in own.difference)
    assert not torch.equal(noise.difference["w"], other.difference["w"])
    # not a multiple of what it stands in for
    cosine = torch.cosine_similarity(noise.difference["w"].flatten(), own.difference["w"].flatten(), dim=0)
    assert abs(float(cosine)) < 0.9


def test_noise_of_a_lora_has_the_norm_of_its_product_and_its_head():
    own = lora(0)
    noise = random_delta(own, 1)
    assert product(noise).norm() == pytest.approx(float(product(own).norm()), rel=1e-6)
    assert not torch.allclose(product(noise), product(own))
    name = "base_model.model.classifier.weight"
    assert torch.equal(noise.tensors[name], own.tensors[name])
    untrained = AdapterDelta(own.config, {**own.tensors, B: torch.zeros(4, 2)})
    assert float(product(random_delta(untrained, 1)).norm()) == 0


def test_norms_are_those_of_the_whole_products():
    own = lora(3, r=3, use_rslora=True)
    whole = own.tensors[B] @ own.tensors[A]
    assert product_norm(own.tensors[A], own.tensors[B]) == pytest.approx(float(whole.norm()))
    assert body_norm(own) == pytest.approx(float(product(own).norm()))
    assert body_norm(prompt(2)) == pytest.approx(float(prompt(2).tensors["prompt_embeddings"].norm()))
    delta = full(1)
    assert body_norm(delta) ** 2 == pytest.approx(sum(float(one.square().sum()) for one in delta.difference.values()))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_mean_of_loras_is_the_mean_of_their_products(rslora):
    others = [lora(seed, use_rslora=rslora) for seed in (1, 2, 3)]
    mean = mean_delta(lora(0, use_rslora=rslora), others)
    wanted = sum(map(product, others)) / 3
    assert torch.allclose(product(mean), wanted, atol=1e-6)
    assert mean.config["r"] == 6
    name = "base_model.model.classifier.weight"
    assert torch.equal(mean.tensors[name], lora(0).tensors[name])


def test_the_mean_of_full_differences_counts_what_is_absent_as_zero():
    first, second = full(1, extra=torch.ones(2)), full(2)
    second = FullDelta(BASE, "bert", second.difference, {}, second.head, first.body)
    own = FullDelta(BASE, "bert", full(0).difference, {}, full(0).head, first.body)
    mean = mean_delta(own, [first, second])
    assert torch.allclose(mean.difference["extra"], torch.full((2,), 0.5))
    assert torch.allclose(mean.difference["w"], (first.difference["w"] + second.difference["w"]) / 2)
    assert torch.equal(mean.head["head"], own.head["head"])


def test_another_tasks_body_comes_with_the_own_head():
    for own, other in ((full(0), full(1)), (lora(0), lora(1)), (prompt(0), prompt(1))):
        made = with_body_of(own, other)
        if isinstance(own, FullDelta):
            assert torch.equal(made.difference["w"], other.difference["w"])
            assert torch.equal(made.head["head"], own.head["head"])
            assert made.corrections == {}
        else:
            for name, tensor in made.tensors.items():
                source = own if "classifier" in name or "head" in name else other
                assert torch.equal(tensor, source.tensors[name]), name


@pytest.mark.parametrize(("own", "other"), [(full(0), lora(0)), (full(0), full(1, rows=5)), (lora(0), lora(1, r=3)),
                                            (lora(0), prompt(0)), (lora(0), lora(1, use_rslora=True)),
                                            (lora(0), lora(1, alpha_pattern={"x": 64}))])  # fmt: skip
def test_deltas_that_are_not_alike_are_refused(own, other):
    with pytest.raises(DeltaError, match="cannot stand in"):
        with_body_of(own, other)


def test_what_has_no_mean_or_noise_is_refused():
    with pytest.raises(DeltaError, match="no deltas"):
        mean_delta(full(0), [])
    with pytest.raises(DeltaError, match="rank_pattern"):
        mean_delta(lora(0, rank_pattern={"x": 4}), [lora(1)])
    with pytest.raises(DeltaError, match="IA3"):
        random_delta(AdapterDelta({"peft_type": "IA3"}, {"base_model.model.x.ia3_l": torch.ones(3)}), 0)
