from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods.protocol import Run
from anytune.methods.tune.bitfit import BitFit, is_bias
from anytune.models.base import load_base


@pytest.mark.parametrize(
    ("name", "expected"),
    [("encoder.layer.0.output.dense.bias", True), ("bias", True), ("encoder.bias.weight", False), ("a.bias_k", False)],
)
def test_a_bias_is_a_parameter_called_bias(name, expected):
    assert is_bias(name) is expected


def test_biases_and_the_whole_head_are_trained_and_nothing_else(tiny_base):
    base = load_base(tiny_base)
    model, head_names = base.task_model("classification", ("a", "b"), 0)
    BitFit().prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head_names))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(head_names) <= trained
    assert "bert.encoder.layer.0.attention.output.LayerNorm.bias" in trained
    assert "bert.encoder.layer.0.attention.output.LayerNorm.weight" not in trained
    assert all(name.endswith(".bias") for name in trained - set(head_names))


def test_a_base_without_biases_is_refused_with_another_method(tiny_base):
    base = load_base(tiny_base)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    model.classifier = torch.nn.Linear(2, 2)
    head = ["classifier.weight", "classifier.bias"]
    with pytest.raises(MethodError, match="found no bias") as caught:
        BitFit().prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head))
    assert caught.value.fix == "--method lora"
