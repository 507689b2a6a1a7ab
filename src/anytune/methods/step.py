"""The step: one module around model, methods and objective, and the small functions on weights and terms beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anytune.errors import MethodError
from anytune.methods.protocol import Batch, Method, Terms, check_composition, overrides


class StepModule(nn.Module):
    """One module whose ``forward(batch)`` gives named loss terms; only this is handed to DDP, FSDP or a Trainer.

    Calling a submodule past it would leave gradients different on each process without an error.

    Args:
        model: what is trained.
        methods: in the order given by the user.
        objective: the plain objective of the job (classification, masked language modelling, ...).
        autocast: context factory for mixed precision, entered around the forward pass and the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[Method],
        objective: Any,
        autocast: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__()
        check_composition(methods)
        self.model = model
        self.methods = tuple(methods)
        self.plain = objective
        self._forward = next((method.forward for method in methods if overrides(method, "forward")), objective.forward)
        self._objectives = [method.objective for method in methods if overrides(method, "objective")]
        self._autocast = autocast

    def forward(self, batch: Batch) -> Terms:
        """Named loss terms of one micro-batch, each a scalar tensor."""
        if self._autocast is None:
            return self._terms(batch)
        with self._autocast():
            return self._terms(batch)

    def _terms(self, batch: Batch) -> Terms:
        output = self._forward(self.model, batch)
        terms: Terms = self.plain.terms(output, batch)
        for objective in self._objectives:
            terms = objective(self.model, batch, output, terms)
        return terms


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that is trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def upcast(values: Tensor) -> Tensor:
    """Half precision to fp32, for sums and losses; fp32 and fp64 stay as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def total(terms: Terms) -> Tensor:
    """The sum of the loss terms, in the order they were added, in fp32 or wider.

    Raises:
        MethodError: there is none.
    """
    if not terms:
        raise MethodError("the objective gave no loss term", why="There is nothing to train towards.")
    return torch.stack([upcast(term) for term in terms.values()]).sum()
