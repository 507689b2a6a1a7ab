"""Methods compose where their hooks do not collide; where they do, the error says which two."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.objective import Classification
from anytune.methods.protocol import Method, Stage, check_composition
from anytune.methods.registry import register
from anytune.methods.step import StepModule
from tests.contract.bench import Bench, equal


@register
@dataclass(kw_only=True)
class Doubled(Method):
    """Owns the forward pass."""

    def forward(self, model, batch):
        return Classification().forward(model, batch)


@register
@dataclass(kw_only=True)
class Mirrored(Method):
    """Owns the forward pass, too."""

    def forward(self, model, batch):
        return Classification().forward(model, batch)


@register
@dataclass(kw_only=True)
class Staged(Method):
    """Two stages."""

    def stages(self):
        return (Stage("teacher", 0.25), Stage("student", 0.75))


@register
@dataclass(kw_only=True)
class Penalty(Method):
    """Adds a named term and counts its hooks; all its state is in the object."""

    weight: float = 0.1
    seen: int = 0

    def prepare(self, model, run):
        self.calls: list[str] = []
        return model

    def before_step(self, model):
        self.calls.append("before_step")

    def prepare_batch(self, batch):
        self.calls.append("prepare_batch")
        return batch

    def objective(self, model, batch, output, terms):
        self.calls.append("objective")
        return {**terms, "penalty": self.weight * output.logits.pow(2).mean()}

    def after_backward(self, model):
        self.calls.append("after_backward")

    def after_step(self, model):
        self.calls.append("after_step")


def test_two_owners_of_one_hook_are_refused_naming_both_and_the_hook():
    with pytest.raises(
        MethodError, match="'doubled' and 'mirrored' cannot be combined: both replace 'forward'"
    ) as caught:
        check_composition([Doubled(), registry.create("tune/full"), Mirrored()])
    assert caught.value.fix == "--method doubled   or   --method mirrored"


def test_they_are_refused_before_anything_is_loaded_and_by_the_step_module():
    with pytest.raises(MethodError, match="'doubled' and 'mirrored'"):
        registry.parse([Doubled(), Mirrored()], "tune")
    with pytest.raises(MethodError, match="'doubled' and 'mirrored'"):
        StepModule(torch.nn.Linear(1, 1), [Doubled(), Mirrored()], Classification())


def test_owners_of_different_hooks_go_together():
    check_composition([Doubled(), Staged(), Penalty()])


def test_the_same_method_twice_is_refused():
    with pytest.raises(MethodError, match="'full' is given twice"):
        registry.parse(["full", "tune/full"], "tune")


def test_hooks_are_called_in_the_order_of_the_protocol_with_two_micro_batches(bench: Bench):
    method = Penalty()
    bench.loop("tune/full", methods=[method], steps=2, pieces=2)
    micro = ["prepare_batch", "objective"]
    assert method.calls == 2 * ["before_step", *micro, *micro, "after_backward", "after_step"]


def test_a_term_of_a_method_enters_the_loss_and_a_weight_of_zero_does_not(bench: Bench):
    plain, none, some = (bench.loop("tune/full", methods=methods).after
                         for methods in ([], [Penalty(weight=0.0)], [Penalty(weight=0.5)]))  # fmt: skip
    assert not equal(plain, some)
    for name in plain:
        torch.testing.assert_close(plain[name], none[name], rtol=0, atol=1e-6)


def test_composed_methods_both_do_what_they_say(bench: Bench):
    made = bench.loop("tune/full", methods=[registry.create("tune/bitfit"), Penalty(weight=0.5)])
    alone = bench.loop("tune/full", methods=[registry.create("tune/bitfit")])
    assert made.trained_names == alone.trained_names
    assert not equal(made.after, alone.after)


def test_a_forward_of_a_method_stands_in_for_the_plain_one(bench: Bench):
    assert equal(bench.loop("tune/full", methods=[Doubled()]).after, bench.loop("tune/full", methods=[]).after)
