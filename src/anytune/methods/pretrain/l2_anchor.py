"""L2 anchor: in every step all weights of the backbone are drawn back a little to where they began.

In plain words: a spring from each weight to the value it had as the stage began, or to the value it had in the first
base of the stream. It holds everything alike, needed or not; EWC without the measuring.

Formula: penalty strength / 2 * ||w - w0||^2 over the weights w of the backbone. ``decoupled`` (default):
w <- w - rate * strength * (w - w0) just before the optimizer's own update, with the rate of that step and weight.
``penalty``: g <- g + strength * (w - w0) on the complete gradient, before clipping. w0 with ``to: stage`` is w as the
stage began, with ``to: first`` w as it was when the first stage of the stream began.

Paper: Li, Grandvalet, Davoine 2018 (L2-SP) in fine-tuning; in continual learning the plain control beside EWC
(Kirkpatrick et al. 2017). The decoupled form is AdamW's (Loshchilov, Hutter 2019) with another origin.
Costs: one pass over the weights in a step; w0, 4 bytes per weight (``anchor: bf16`` 2 bytes, ``cpu`` none on the
device but a copy to it in every step). ``to: first`` lays w0 beside every base of the stream, 4 bytes per weight.
When not to use it: when the new domain is far and must be learnt; with ``to: first`` on long streams, where the pull
is to a place that every stage has further to go from.
Choices of ours: decoupled by default, so that strength means the same for every weight; it replaces weight decay on
the weights it draws. The pre-training head is left free, as in EWC. With ``to: first`` on a base that carries nothing
of this method, the first base is the one it begins with. Over a stage a share of about strength * (sum of the rates
of all steps) is drawn back: at a rate of 1e-4 for 2500 steps that is 0.25 * strength. The default strength is ours
and not tuned; try 1, 10 and 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn, optim

from anytune.methods.anchors import Place
from anytune.methods.of_base import split_groups
from anytune.methods.of_stream import backbone_weights, first_values
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.springs import Form, Spring


@register
@dataclass(kw_only=True)
class L2Anchor(Method):
    """Decay of the backbone's weights towards the stage's beginning or the stream's."""

    strength: Annotated[float, Field(ge=0, description="lambda: how strongly weights are drawn back; 0 = never")] = 1.0
    to: Annotated[
        Literal["stage", "first"], Field(description="drawn to the weights this stage or the whole stream began with")
    ] = "stage"
    form: Annotated[
        Form,
        Field(
            description="decoupled = rate * strength beside the optimizer's update; penalty = added to the gradient"
        ),
    ] = "decoupled"
    anchor: Annotated[
        Place, Field(description="where the values are kept: device, cpu, or bf16 (on the device, rounded)")
    ] = "device"

    neutral = {"strength": 0.0}  # noqa: RUF012 - nothing is kept then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the values to draw to.

        Raises:
            MethodError: no weight of the backbone is trained, or the base carries values for other weights.
        """
        self._first: dict[str, Tensor] = {}
        self._spring: Spring | None = None
        if self.strength:
            weights = backbone_weights(model, run, self)
            if self.to == "first":
                self._first = first_values(run, self, weights)
            anchors = {name: self._first.get(name, weight) for name, weight in weights.items()}
            self._spring = Spring(anchors, self.strength, self.form, self.anchor)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """No plain decay on what is drawn to its anchor."""
        spring = self._spring
        if spring is None:
            return groups
        parts = split_groups(groups, lambda name, weight: name in spring)
        return [{**group, "weight_decay": 0.0} if drawn else group for drawn, group in parts]

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

    def carry_state(self) -> dict[str, Any]:
        """The weights the stream began with, where they are drawn to."""
        return {"first": self._first} if self._first else {}
