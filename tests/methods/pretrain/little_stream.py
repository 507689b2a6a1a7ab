"""Stages of pre-training on the tiny base, in a loop written out: what the tests of single methods compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytune.data.batches import BlockBatches
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.engine.stages import method_groups
from anytune.methods import LanguageModelling, Method, Run, StepModule, total
from anytune.models.base import load_base
from anytune.models.dropout import set_dropout

RATE = 1e-2


class Little:
    """A pre-training model of a base in fp64, the run it is for, and a domain's blocks."""

    def __init__(
        self, base: Path, domain: Path, *, dropout: float = 0.0, steps: int = 4, seed: int = 11,
        carried: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.base = load_base(base)
        tokenizer = self.base.tokenizer()
        blocks = pack(load_domain(domain).texts, tokenizer, 32, objective="mlm", cache=None)
        self.batches = BlockBatches(blocks, 4, 3, "mlm", tokenizer)
        self.model, _ = self.base.pretraining_model(7)
        set_dropout(self.model, dropout)
        self.model.double()
        self.steps, self.objective = steps, LanguageModelling(self.base.anatomy)
        self.run = Run(
            seed=seed, steps=steps, anatomy=self.base.anatomy, objective=self.objective, batches=self.batches,
            base=self.base, device=torch.device("cpu"), carried=carried or {},
        )  # fmt: skip

    def named(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def of_backbone(self) -> list[str]:
        return [name for name in self.named() if name.startswith("bert.")]

    def loss(self, step: int) -> Tensor:
        batch = self.batches.batch(step)
        return self.objective.terms(self.objective.forward(self.model, batch), batch)["loss"]

    def prepared(self, method: Method) -> Method:
        self.model = method.prepare(self.model, self.run)
        return method

    def train(
        self, methods: Sequence[Method], *, optimizer: Any = None, prepared: bool = False, clip: float | None = None,
        first: int = 0, seen: Callable[[int], None] = lambda step: None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """All steps; ``seen`` is called after each of them."""
        for method in () if prepared else methods:
            self.prepared(method)
        module = StepModule(self.model, methods, self.objective)
        if optimizer is None:
            optimizer = torch.optim.AdamW(method_groups(self.model, methods, RATE, 0.1))
        for method in methods:
            method.attach(self.model, optimizer)
        self.optimizer = optimizer
        for step in range(first, self.steps):
            self.model.train()
            optimizer.zero_grad()
            for method in methods:
                method.before_step(self.model)
            batch = self.batches.batch(step)
            for method in methods:
                batch = method.prepare_batch(batch)
            total(module(batch)).backward()
            for method in methods:
                method.after_backward(self.model)
            if clip is not None:
                nn.utils.clip_grad_norm_(list(self.named().values()), clip)
            optimizer.step()
            for method in methods:
                method.after_step(self.model)
            seen(step)
        return weights(self.model)

    def finish(self, method: Method) -> dict[str, Any]:
        """What the method leaves for the next stage, as ``Run.carried``."""
        self.model = method.finish(self.model, self.run)
        return {method.name: method.carry_state()}


def sgd(little: Little, rate: float = 0.1) -> torch.optim.SGD:
    named = little.named()
    return torch.optim.SGD([{"params": list(named.values()), "names": list(named)}], lr=rate)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], atol: float = 1e-12) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
