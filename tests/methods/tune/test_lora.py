from __future__ import annotations

import pytest
import torch

from anytune.methods.protocol import Run
from anytune.methods.tune.lora import LoRA
from anytune.models.base import load_base
from tests.models.kinds import make_kind


def prepared(tiny_base, seed=0, **settings):
    base = load_base(tiny_base)
    model, head_names = base.task_model("classification", ("a", "b"), 0)
    run = Run(seed=seed, steps=1, anatomy=base.anatomy, head_names=head_names)
    return LoRA(**settings).prepare(model, run)


def adapted(model) -> set[str]:
    return {name.split(".layer.0.")[1].split(".lora_A")[0] for name, _ in model.named_parameters()
            if ".layer.0." in name and "lora_A" in name}  # fmt: skip


def test_attention_is_the_default_target_and_all_linear_maps_can_be_asked_for(tiny_base):
    attention = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}
    assert adapted(prepared(tiny_base)) == attention
    assert adapted(prepared(tiny_base, targets="all-linear")) == attention | {"intermediate.dense", "output.dense"}
    assert adapted(prepared(tiny_base, targets=["query"])) == {"attention.self.query"}


@pytest.mark.parametrize(
    ("kind", "attention", "others"),
    [("gpt2", {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
     ("llama", {f"self_attn.{one}_proj" for one in "qkvo"}, {f"mlp.{one}_proj" for one in ("gate", "up", "down")})],
)  # fmt: skip
def test_the_linear_maps_of_decoders_are_targets_whatever_class_they_are(tmp_path, kind, attention, others):
    base = load_base(make_kind(kind, tmp_path))
    for targets, expected in (("attention", attention), ("all-linear", attention | others)):
        model, head_names = base.task_model("generation", (), 0)
        run = Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head_names)
        wrapped = LoRA(targets=targets).prepare(model, run)
        names = [name.split(".lora_A")[0] for name, _ in wrapped.named_parameters() if "lora_A" in name]
        assert {name.split(".0.")[1] for name in names if ".0." in name} == expected
        assert wrapped.peft_config["default"].task_type == "CAUSAL_LM"


def test_training_begins_at_the_function_of_the_base(tiny_base):
    base = load_base(tiny_base)
    plain, _ = base.task_model("classification", ("a", "b"), 0)
    ids = torch.tensor([[2, 9, 3]])
    with torch.no_grad():
        assert torch.equal(plain.eval()(ids).logits, prepared(tiny_base).eval()(ids).logits)


def test_the_matrices_are_drawn_from_the_runs_seed_and_from_nothing_else(tiny_base):
    def first(seed):
        parameters = dict(prepared(tiny_base, seed=seed).named_parameters())
        return next(tensor for name, tensor in parameters.items() if "lora_A" in name)

    torch.manual_seed(1)
    one = first(5)
    torch.manual_seed(2)
    assert torch.equal(one, first(5))
    assert not torch.equal(one, first(6))
