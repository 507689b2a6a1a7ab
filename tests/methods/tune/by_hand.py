"""A few steps of a method on the tiny base, in a loop written out: what the tests of single methods compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.tasks import load_task
from anytune.engine.stages import method_groups
from anytune.methods import Classification, Method, Run, StepModule, total
from anytune.models.base import load_base
from anytune.models.dropout import set_dropout

RATE = 1e-2


class Small:
    """A model with a fresh head on a base, the run it is for, and its data."""

    def __init__(
        self, base: Path, task: Path, *, steps: int = 4, dropout: float | None = 0.0, double: bool = False
    ) -> None:
        self.base, found = load_base(base), load_task(task)
        encoded = encode_task(found.train, self.base.tokenizer(), 32)
        self.batches = ExampleBatches(encoded, 8, 3)
        self.model, self.head_names = self.base.task_model("classification", found.label_names, 7)
        if dropout is not None:
            set_dropout(self.model, dropout)
        if double:
            self.model.double()
        self.steps, self.objective = steps, Classification()
        self.run = Run(
            seed=11, steps=steps, anatomy=self.base.anatomy, head_names=self.head_names, objective=self.objective,
            batches=self.batches, base=self.base, device=torch.device("cpu"),
        )  # fmt: skip

    def named(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def of_base(self) -> list[str]:
        return [name for name in self.named() if name not in self.head_names]

    def loss(self, step: int) -> Tensor:
        batch = self.batches.batch(step)
        return self.objective.terms(self.objective.forward(self.model, batch), batch)["loss"]

    def train(
        self, methods: Sequence[Method], *, first: int = 0, last: int | None = None, prepared: bool = False,
        optimizer: Any = None, clip: float | None = 1.0, weight_decay: float = 0.1,
        seen: Callable[[int], None] = lambda step: None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Steps ``first`` to ``last`` with all that a method may hook; ``seen`` is called after each backward pass."""
        for method in () if prepared else methods:
            self.model = method.prepare(self.model, self.run)
        module = StepModule(self.model, methods, self.objective)
        if optimizer is None:
            optimizer = adamw(method_groups(self.model, methods, RATE, weight_decay))
        for method in methods:
            method.attach(self.model, optimizer)
        self.optimizer = optimizer
        for step in range(first, self.steps if last is None else last):
            self.model.train()
            optimizer.zero_grad()
            for method in methods:
                method.before_step(self.model)
            total(module(self.batches.batch(step))).backward()
            for method in methods:
                method.after_backward(self.model)
            seen(step)
            if clip is not None:
                every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                nn.utils.clip_grad_norm_(every, clip)
            optimizer.step()
            for method in methods:
                method.after_step(self.model)
        return weights(self.model)


def adamw(groups: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, fused=True)


def sgd(small: Small, rate: float = 0.1) -> torch.optim.SGD:
    named = small.named()
    return torch.optim.SGD([{"params": list(named.values()), "names": list(named)}], lr=rate)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def close(left: dict[str, Tensor], right: dict[str, Tensor], atol: float = 1e-12) -> None:
    """AdamW enlarges a gradient that is 0 but for rounding (a key's bias), so some comparisons need more room."""
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


class InParts(Method):
    """Makes the optimizer's step in two parts from a hook of its own, as a method that holds entries still does."""

    name, room = "in_parts", "tune"

    def attach(self, model, optimizer):
        self.inside = False
        optimizer.register_step_pre_hook(self.half)

    def half(self, optimizer, *_):
        if self.inside:
            return
        every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        given = {parameter: parameter.grad for parameter in every if parameter.grad is not None}
        chosen = list(given)[::2]
        for parameter in given:
            parameter.grad = given[parameter] if any(parameter is one for one in chosen) else None
        self.inside = True
        optimizer.step()
        self.inside = False
        for parameter in given:
            parameter.grad = None if any(parameter is one for one in chosen) else given[parameter]
