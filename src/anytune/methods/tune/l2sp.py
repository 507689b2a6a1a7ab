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
from typing import Annotated, Any

from pydantic import Field
from torch import nn, optim

from anytune.methods.anchors import Place
from anytune.methods.of_base import split_groups, weights_of_base
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.springs import Form, Spring


@register
@dataclass(kw_only=True)
class L2SP(Method):
    """Decay of the base's weights towards their initial values."""

    strength: Annotated[float, Field(ge=0, description="lambda: how strongly weights are drawn back; 0 = never")] = 1.0
    form: Annotated[
        Form,
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
        self._names: set[str] = set()
        self._spring: Spring | None = None
        if self.strength or self.head_decay is not None:
            weights = weights_of_base(model, run, self)
            self._names = set(weights)
            if self.strength:
                self._spring = Spring(weights, self.strength, self.form, self.anchor)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """No plain decay on what is drawn to its anchor; the head's own on its matrices."""
        if not self._names:
            return groups
        base, made = self._names, []
        for part, group in split_groups(groups, lambda name, weight: (name in base, weight.ndim > 1)):
            if part[0] and self.strength:
                group = {**group, "weight_decay": 0.0}
            elif part == (False, True) and self.head_decay is not None:
                group = {**group, "weight_decay": self.head_decay}
            made.append(group)
        return made

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Hang the pull on the optimizer.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if self._spring is not None:
            self._spring.attach(model, optimizer, self)

    def before_step(self, model: nn.Module) -> None:
        """Nothing has been drawn back in this step."""
        if self._spring is not None:
            self._spring.before_step()

    def after_backward(self, model: nn.Module) -> None:
        """Add the penalty's gradient, in that form."""
        if self._spring is not None:
            self._spring.after_backward(model)
