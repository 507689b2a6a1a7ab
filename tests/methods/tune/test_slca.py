from __future__ import annotations

import math

import pytest
import torch

from anytune.engine.stages import method_groups
from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.protocol import Run
from anytune.methods.tune.slca import reverse_cross_entropy
from anytune.models.base import load_base
from tests.methods.prepared import batch_of, prepared
from tests.models.kinds import make_kind


def rates(folder, methods, kind="classification") -> dict[str, float]:
    base = load_base(folder)
    model, head = base.task_model(kind, ("a", "b"), 0)
    run = Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head)
    for method in methods:
        model = method.prepare(model, run)
    groups = method_groups(model, methods, 1.0, 0.1)
    assert all(len(group["names"]) == len(group["params"]) for group in groups)
    named = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert named[name] is parameter
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    return {name: group["peak"] for group in groups for name in group["names"]}


def test_the_backbone_is_slow_and_what_the_base_does_not_hold_is_not(tiny_base):
    found = rates(tiny_base, [registry.create("tune/slca", {"slow": 0.2})])
    assert {name for name, rate in found.items() if rate == 1.0} == {
        "classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias",
    }  # fmt: skip
    assert set(found.values()) == {0.2, 1.0}


def test_a_head_that_a_kind_takes_over_from_pretraining_is_a_head(tmp_path):
    found = rates(make_kind("modernbert", tmp_path), [registry.create("tune/slca")])
    assert {name.split(".")[0] for name, rate in found.items() if rate == 1.0} == {"head", "classifier"}


def test_adapters_inside_the_backbone_are_slow_and_the_head_beside_them_is_not(tiny_base):
    found = rates(tiny_base, [registry.create("tune/lora"), registry.create("tune/slca", {"slow": 0.2})])
    assert {rate for name, rate in found.items() if "lora_" in name} == {0.2}
    assert {rate for name, rate in found.items() if "modules_to_save" in name} == {1.0}
    assert any("pooler" in name for name in found)


def test_a_model_without_a_head_is_refused(tmp_path):
    folder = make_kind("gpt2", tmp_path)
    with pytest.raises(MethodError, match="finds no head"):
        rates(folder, [registry.create("tune/slca")], "generation")
    assert set(rates(folder, [registry.create("tune/slca", {"slow": 1.0})], "generation").values()) == {1.0}


def test_the_reverse_term_is_the_naive_sum_with_its_clamps():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64) * 10
    labels = torch.tensor([0, 1, 2, 3, 0])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        exponents = [math.exp(value) for value in row]
        for k, value in enumerate(exponents):
            total -= max(value / sum(exponents), 1e-7) * math.log(1.0 if k == label else 1e-4)
    found = reverse_cross_entropy(logits, labels)
    assert found.item() == pytest.approx(total / 5, rel=1e-12)
    assert total > 1e-3


def test_a_certain_wrong_answer_costs_at_most_9_21_and_no_items_cost_nothing():
    logits = torch.tensor([[100.0, -100.0]])
    assert reverse_cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(-math.log(1e-4), rel=1e-5)
    assert reverse_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(9.21e-7, rel=1e-3)
    assert reverse_cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).item() == 0.0


@pytest.mark.parametrize("kind", ["classification", "token-classification"])
def test_the_term_stands_beside_the_plain_loss(tiny_base, kind):
    ready, batch = prepared(tiny_base, "tune/slca", kind, reverse=0.5), batch_of(kind)
    output = ready.objective.forward(ready.model, batch)
    labels = batch["labels"][batch["labels"] != -100]
    expected = 0.5 * reverse_cross_entropy(output.logits, labels)
    torch.testing.assert_close(ready.terms(batch)["reverse"], expected, rtol=1e-12, atol=0)


def test_a_regression_has_no_reverse_term_and_asking_for_one_is_an_error(tiny_base):
    with pytest.raises(MethodError, match=r"reverse = 0\.1 on a regression") as caught:
        prepared(tiny_base, "tune/slca", "regression")
    assert "reverse=0" in caught.value.fix
    unaware = registry.create("tune/slca")  # in a loop that did not say what the objective is
    with pytest.raises(MethodError, match="on a regression"):
        unaware.objective(torch.nn.Identity(), batch_of("regression"), None, {})
    terms = prepared(tiny_base, "tune/slca", "regression", reverse=0.0).terms(batch_of("regression"))
    assert set(terms) == {"loss"}
