"""A spring from each weight to a value it is drawn back to: L2-SP and its like, decoupled or as a penalty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from anytune.methods.anchors import Anchors, Place
from anytune.methods.of_base import check_names, with_gradient
from anytune.methods.parts import local
from anytune.methods.protocol import Method
from anytune.methods.step import trainable

Form = Literal["decoupled", "penalty"]


def pull(weights: list[Tensor], anchors: list[Tensor], share: float) -> None:
    """w <- w - share * (w - anchor), in place, for each weight; a share above 1 would overshoot and counts as 1."""
    if weights:
        torch._foreach_lerp_(weights, anchors, min(share, 1.0))


class Spring:
    """Draws weights back to their anchors, in the loop's hooks of the same names.

    ``decoupled``: w <- w - rate * strength * (w - w0) just before the optimizer's own update, with the rate of that
    step and weight. ``penalty``: g <- g + strength * (w - w0) on the complete gradient, before clipping.

    Args:
        anchors: name -> w0, as ``prepare`` has them.
        strength: above 0.
        place: where the anchors are kept.
    """

    def __init__(self, anchors: Mapping[str, Tensor], strength: float, form: Form, place: Place) -> None:
        self.strength, self.form = strength, form
        self._names = set(anchors)
        self._anchors = Anchors(place)
        self._anchors.take(anchors)
        self._pulled: set[str] = set()  # in this step

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def attach(self, model: nn.Module, optimizer: optim.Optimizer, method: Method) -> None:
        """Hang the pull on the optimizer: there the weights are the true ones, whatever other methods put in place.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        check_names(self._names, model, method)
        if self.form == "decoupled":
            optimizer.register_step_pre_hook(self._pull)

    @torch.no_grad()
    def _pull(self, optimizer: optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            chosen = with_gradient(group, self._anchors, self._pulled)
            anchors = [self._anchors.at(name, parameter) for name, parameter in chosen]
            pull([local(parameter) for _, parameter in chosen], anchors, group["lr"] * self.strength)
            self._pulled.update(name for name, _ in chosen)

    def before_step(self) -> None:
        """Each weight is drawn back once in a step, also where a method makes the optimizer's step in parts."""
        self._pulled = set()

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Add the penalty's gradient, in that form."""
        if self.form != "penalty":
            return
        for name, parameter in trainable(model).items():
            if name in self._anchors and parameter.grad is not None:
                way = local(parameter) - self._anchors.at(name, parameter)
                local(parameter.grad).add_(way, alpha=self.strength)
