"""RecAdam: first recall the base, then learn the task; the shift between the two follows a sigmoid.

In plain words: at the beginning the base's weights are drawn to their initial values and hardly follow the task, while
the head learns. Then the balance shifts, and the rest of the run is plain training.

Formula: lambda(t) = 1 / (1 + exp(-k * (t - t0))) in optimizer step t = 1, 2, ...; for each weight w of the base, with
w0 its initial value. ``decoupled`` (default, the paper's):
w <- w - rate * (lambda * AdamStep(g) + (1 - lambda) * gamma * (w - w0)).
``gradient``: a plain Adam step on lambda * g + (1 - lambda) * gamma * (w - w0). The head gets plain Adam either way.

Paper: Chen, Hou, Cui, Che, Liu, Yu 2020 (Recall and Learn: Fine-tuning Deep Pretrained Language Models with Less
Forgetting). There gamma is 5000, k one of 0.05, 0.1, 0.2, 0.5, 1, and t0 one of 100, 250, 500 steps (small tasks).
Costs: one forward and one backward per step; the anchors, 4 bytes per weight of the base (``anchor: bf16`` 2 bytes);
one pass over the weights while lambda is below 1, nothing after that.
When not to use it: in very short runs, of which it takes away a part; where forgetting does no harm.
Choices of ours: t0 is a share of the run by default (``midpoint``), because runs on little data may be over before
step 250, and k follows from it so that k * t0 = 25, the product of the paper's middle values 0.1 * 250;
``midpoint_steps`` and ``rate`` give t0 and k in steps as there. The default share is ours and not tuned. A midpoint of
0 is lambda = 1 from the first step: plain training. The pull of one step, rate * (1 - lambda) * gamma, is at most 1
(back onto w0): above a rate of 1 / gamma it would overshoot. ``gradient`` mixes after clipping; Adam then divides the
pull by its own size, so gamma means something else there, and smaller values suit. In the decoupled form the run's
weight decay is scaled by lambda like the rest of the optimizer's update. Entries that ``dps`` holds against
the optimizer are drawn back all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn, optim

from anytune.methods.anchors import Anchors, Place
from anytune.methods.of_base import check_names, split_groups, weights_of_base, with_gradient
from anytune.methods.parts import local
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register

#: k * t0 of the paper's middle values, 0.1 * 250.
STEEPNESS = 25.0


def learning_share(step: int, midpoint: float, rate: float | None = None) -> float:
    """lambda(t) in [0, 1]: the share of the task in the update of step ``step`` (1, 2, ...).

    Args:
        step: t.
        midpoint: t0 in steps; where it is 0 and no rate is given, the sigmoid is infinitely steep: always 1.
        rate: k per step; None for ``STEEPNESS / midpoint``.
    """
    if rate is None:
        if midpoint <= 0:
            return 1.0
        rate = STEEPNESS / midpoint
    return 1.0 / (1.0 + math.exp(min(-rate * (step - midpoint), 700.0)))


@register
@dataclass(kw_only=True)
class RecAdam(Method):
    """Annealing from recall of the base to learning of the task, inside the optimizer's step."""

    midpoint: Annotated[
        float, Field(ge=0, le=1, description="t0 as a share of the run's steps; 0 = plain training from the start")
    ] = 0.25
    midpoint_steps: Annotated[
        int | None, Field(gt=0, description="t0 in optimizer steps instead of a share (the paper's 250)")
    ] = None
    rate: Annotated[
        float | None,
        Field(gt=0, description="k per step (the paper's 0.1); null = 25 / t0, the same curve in any run"),
    ] = None
    gamma: Annotated[float, Field(ge=0, description="weight of the pull to the initial values")] = 5000.0
    form: Annotated[
        Literal["decoupled", "gradient"],
        Field(description="decoupled = beside Adam's step, as in the paper; gradient = mixed into what Adam sees"),
    ] = "decoupled"
    anchor: Annotated[
        Place, Field(description="where the initial values are kept: device, cpu, or bf16 (on the device, rounded)")
    ] = "device"

    neutral = {"midpoint": 0.0}  # noqa: RUF012

    @property
    def _plain(self) -> bool:
        return self.midpoint == 0 and self.midpoint_steps is None and self.rate is None

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the initial values of the base's weights.

        Raises:
            MethodError: no weight of the base is trained.
        """
        self._step = 0
        self._midpoint = float(self.midpoint_steps or self.midpoint * run.steps)
        self._names: list[str] = []
        self._rates: list[tuple[dict[str, Any], float]] = []
        self._depth, self._done = 0, set[str]()
        self._anchors = Anchors(self.anchor)
        if not self._plain:
            weights = weights_of_base(model, run, self)
            self._names = list(weights)
            self._anchors.take(weights)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups of the base's weights and groups of the head's: for the former the rate is scaled by lambda."""
        if self._plain:
            return groups
        base = set(self._names)
        return [group for _, group in split_groups(groups, lambda name, weight: name in base)]

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Hang the mixing on the optimizer: after clipping, on the true weights.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if self._plain:
            return
        check_names(self._names, model, self)
        optimizer.register_step_pre_hook(self._mix)
        optimizer.register_step_post_hook(self._mixed)

    def before_step(self, model: nn.Module) -> None:
        """A new step: nothing is mixed yet."""
        self._depth, self._done = 0, set()

    @torch.no_grad()
    def _mix(self, optimizer: optim.Optimizer, *_: Any) -> None:
        share = learning_share(self._step + 1, self._midpoint, self.rate)
        self._depth += 1  # a method may make the optimizer's step in parts, by a hook of its own
        if share == 1.0:
            return
        strength = (1.0 - share) * self.gamma
        for group in optimizer.param_groups:
            if not any(name in self._anchors for name in group["names"][:1]):
                continue  # the head's: a group is all of one or all of the other
            chosen = with_gradient(group, self._anchors, self._done)
            self._done.update(name for name, _ in chosen)
            weights = [local(parameter) for _, parameter in chosen]
            anchors = [self._anchors.at(name, parameter) for name, parameter in chosen]
            if self.form == "gradient":
                if chosen:
                    gradients = [local(parameter.grad) for _, parameter in chosen]
                    torch._foreach_mul_(gradients, share)
                    torch._foreach_add_(gradients, torch._foreach_sub(weights, anchors), alpha=strength)
                continue
            rate = next((rate for scaled, rate in self._rates if scaled is group), group["lr"])
            if chosen:
                torch._foreach_lerp_(weights, anchors, min(rate * strength, 1.0))
            if self._depth == 1:
                self._rates.append((group, rate))
                group["lr"] = rate * share

    def _mixed(self, optimizer: optim.Optimizer, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            for group, rate in self._rates:
                group["lr"] = rate
            self._rates = []

    def after_step(self, model: nn.Module) -> None:
        """Count optimizer steps."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of optimizer steps made."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at that step."""
        self._step = int(state["step"])
