from __future__ import annotations

import torch

from anytune.methods.protocol import Run
from anytune.methods.tune.lora import LoRA, target_names
from anytune.models.base import load_base


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


def test_target_names_are_relative_to_a_block(tiny_base):
    base = load_base(tiny_base)
    model, _ = base.task_model("classification", ("a", "b"), 0)
    assert set(target_names(model, base.anatomy, "all-linear")) > set(target_names(model, base.anatomy, "attention"))


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
