"""L2-SP: weight decay towards the base's own values instead of towards 0.

In plain words: in each step every weight that the base brought is drawn back a little towards the value it began with.
What the task does not need stays as pre-training left it.

Formula: penalty strength / 2 * ||w - w0||^2 over the weights w of the base, w0 their values at the beginning.
``decoupled`` (default): w <- w - rate * strength * (w - w0) just before the optimizer's own update, with the rate of
that step and weight. ``penalty``: g <- g + strength * (w - w0) on the complete gradient, before clipping, as if the
penalty stood in the loss; Adam then divides it by the gradient's size like the rest. The head has no w0: it keeps the
run's weight decay, or gets ``head_decay``, on its matrices.

Paper: Li, Grandvalet, Davoine 2018 (Explicit Inductive Bias for Transfer Learning with Convolutional Networks); for
language models also called prior or pre-trained weight decay. The decoupled form is AdamW's (Loshchilov, Hutter 2019)
with another origin.
Costs: one forward and one backward per step; the anchors, 4 bytes per weight of the base (``anchor: bf16`` 2 bytes,
``cpu`` none on the device but a copy to it in every step); one pass over the weights.
When not to use it: when the task is far from what the base knows and there is data enough to move. A pull that is too
weak does nothing: over a run it draws back a share of about strength * (sum of the rates of all steps), which at a
rate of 2e-5 for 1000 steps is 0.01 * strength.
Choices of ours: decoupled by default, so that strength means the same for every weight; biases and layer norms are
drawn back too; it replaces weight decay: on the base's weights the run's ``weight_decay`` is switched off unless
strength is 0. ``anchor: bf16`` draws towards rounded values, so it also moves weights that the task leaves alone.
``penalty`` is computed where the loss is: with a method that puts other weights in place, at those if it is named
after this one. Entries that ``dps`` holds against the optimizer are drawn
back all the same. The default strength is ours and not tuned; try 1, 10 and 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn, optim

from anytune.methods.anchors import Anchors, Place, pull
from anytune.methods.of_base import check_names, split_groups, weights_of_base, with_gradient
from anytune.methods.parts import local
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.step import trainable


@register
@dataclass(kw_only=True)
class L2SP(Method):
    """Decay of the base's weights towards their initial values."""

    strength: Annotated[float, Field(ge=0, description="lambda: how strongly weights are drawn back; 0 = never")] = 1.0
    form: Annotated[
        Literal["decoupled", "penalty"],
        Field(
            description="decoupled = rate * strength beside the optimizer's update; penalty = added to the gradient"
        ),
    ] = "decoupled"
    head_decay: Annotated[
        float | None, Field(ge=0, description="weight decay of the head's matrices; null = the run's weight_decay")
    ] = None
    anchor: Annotated[
        Place, Field(description="where the initial values are kept: device, cpu, or bf16 (on the device, rounded)")
    ] = "device"

    neutral = {"strength": 0.0}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the initial values of the base's weights.

        Raises:
            MethodError: no weight of the base is trained.
        """
        self._anchors = Anchors(self.anchor)
        self._names: list[str] = []
        self._pulled: set[str] = set()  # in this step
        if self.strength or self.head_decay is not None:
            weights = weights_of_base(model, run, self)
            self._names = list(weights)
        if self.strength:
            self._anchors.take(weights)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """No plain decay on what is drawn to its anchor; the head's own on its matrices."""
        if not self._names:
            return groups
        base, made = set(self._names), []
        for part, group in split_groups(groups, lambda name, weight: (name in base, weight.ndim > 1)):
            if part[0] and self.strength:
                group = {**group, "weight_decay": 0.0}
            elif part == (False, True) and self.head_decay is not None:
                group = {**group, "weight_decay": self.head_decay}
            made.append(group)
        return made

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Hang the pull on the optimizer: there the weights are the true ones, whatever other methods put in place.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if not self.strength:
            return
        check_names(self._names, model, self)
        if self.form == "decoupled":
            optimizer.register_step_pre_hook(self._pull)

    @torch.no_grad()
    def _pull(self, optimizer: optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            chosen = with_gradient(group, self._anchors, self._pulled)
            anchors = [self._anchors.at(name, parameter) for name, parameter in chosen]
            pull([local(parameter) for _, parameter in chosen], anchors, group["lr"] * self.strength)
            self._pulled.update(name for name, _ in chosen)

    def before_step(self, model: nn.Module) -> None:
        """Each weight is drawn back once in a step, also where a method makes the optimizer's step in parts."""
        self._pulled = set()

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Add the penalty's gradient, in that form."""
        if not self.strength or self.form != "penalty":
            return
        for name, parameter in trainable(model).items():
            if name in self._anchors and parameter.grad is not None:
                way = local(parameter) - self._anchors.at(name, parameter)
                local(parameter.grad).add_(way, alpha=self.strength)
