from __future__ import annotations

import inspect
from dataclasses import dataclass

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import protocol, registry
from anytune.methods.protocol import Method, check_kinds, overrides
from anytune.methods.step import StepModule, total, trainable, upcast


class Quiet(Method):
    name = "quiet"


class Louder(Method):
    name = "louder"

    def objective(self, model, batch, output, terms):
        return {name: 2 * term for name, term in terms.items()}


class Extra(Method):
    name = "extra"

    def objective(self, model, batch, output, terms):
        return {**terms, "extra": torch.tensor(1.0)}


class Objective:
    def forward(self, model, batch):
        return model(batch["x"])

    def terms(self, output, batch):
        return {"loss": output.mean()}


def test_every_hook_does_nothing_by_default():
    model, method, batch = torch.nn.Linear(2, 1), Quiet(), {"x": 1}
    groups = [{"params": []}]
    assert method.prepare(model, None) is model
    assert method.finish(model, None) is model
    assert method.prepare_batch(batch) is batch
    assert method.param_groups(model, groups) is groups
    assert method.objective(model, batch, None, terms := {}) is terms
    assert [stage.share for stage in method.stages()] == [1.0]
    assert method.before_step(model) is method.after_backward(model) is method.after_step(model) is None
    assert (method.state_dict(), method.load_state_dict({})) == ({}, None)
    hooks = [name for name, _ in inspect.getmembers(Method, inspect.isfunction)]
    assert [hook for hook in hooks if overrides(method, hook)] == []


def test_the_text_of_the_protocol_names_every_hook():
    text = protocol.__doc__
    for name, hook in inspect.getmembers(Method, inspect.isfunction):
        assert hook.__doc__
        if name not in ("state_dict", "load_state_dict"):
            assert f"method.{name}(" in text, name


def test_objectives_are_applied_in_the_order_the_methods_are_given():
    model = torch.nn.Linear(1, 1)
    batch = {"x": torch.ones(1, 1)}
    alone = StepModule(model, [], Objective())(batch)["loss"]
    first = StepModule(model, [Louder(), Extra()], Objective())(batch)
    last = StepModule(model, [Extra(), Louder()], Objective())(batch)
    assert (first["loss"], first["extra"].item()) == (2 * alone, 1.0)
    assert (last["loss"], last["extra"].item()) == (2 * alone, 2.0)


def test_the_model_is_a_submodule_so_that_a_launcher_sees_its_weights():
    model = torch.nn.Linear(1, 1)
    assert {name for name, _ in StepModule(model, [], Objective()).named_parameters()} == {
        "model.weight",
        "model.bias",
    }


def test_autocast_is_entered_around_forward_and_losses():
    seen = []

    class Watches(Objective):
        def terms(self, output, batch):
            seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
            return super().terms(output, batch)

    module = StepModule(torch.nn.Linear(1, 1), [], Watches(), lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    module({"x": torch.ones(1, 1)})
    assert seen == [(torch.bfloat16, True)]


def test_the_sum_of_terms_is_never_taken_in_half_precision():
    half = torch.tensor(256.0, dtype=torch.bfloat16)
    assert total({"a": half, "b": torch.tensor(1.0, dtype=torch.bfloat16)}).item() == 257.0
    assert total({"a": torch.tensor(0.1, dtype=torch.float64)}).dtype == torch.float64
    assert total({"a": torch.tensor(0.1)}).dtype == torch.float32
    assert upcast(torch.tensor(1.0, dtype=torch.float16)).dtype == torch.float32


def test_an_objective_without_terms_is_a_methods_fault():
    with pytest.raises(MethodError, match="no loss term"):
        total({})


def test_trainable_names_what_has_a_gradient():
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    assert list(trainable(model)) == ["weight"]


def test_a_method_that_does_not_claim_a_kind_of_model_is_refused_on_it():
    @registry.register
    @dataclass(kw_only=True)
    class Only(Method):
        kinds = ("bert", "roberta")
        kinds_reason = "it reads their segment table"

    check_kinds([Only()], "bert")
    with pytest.raises(
        MethodError, match=r"'only' does not work on a base of kind 'gpt2'[\s\S]*bert, roberta: it reads"
    ):
        registry.parse([Only()], "tune", "gpt2")
    assert len(registry.parse([Only()], "tune")) == 1
