"""Extrapolation: take each step's gradient a little ahead of the weights, and step from where they were.

In plain words: before a batch is computed, the weights are moved a short way on in the direction of the last step. The
gradient is taken there and applied to the weights as they were. So a step answers to a neighbourhood of the weights
and not to one point, which smooths sharp places of the loss.

Formula: w' = w - distance * d; the optimizer steps from w with the gradient at w'. For ``direction: gradient`` d is
the gradient of the step before, as the optimizer got it (the first step has none and is a plain one). For ``noise`` d
is drawn anew in each step, normal, with an expected length of 1 over all trained weights.

Paper: Lin, Kong, Stich, Jaggi 2020 (Extrapolation for Large-batch Training in Deep Learning); the extragradient method
goes back to Korpelevich 1976, with past gradients to Popov 1980.
Costs: one forward and one backward per step (a classical extragradient takes two); w' beside w, 4 bytes per trained
weight, and between the steps the kept gradient in its place. ``noise`` draws a number for every weight in every step.
When not to use it: together with another method that puts other weights in place (mixout, dps in its Mix form); where
memory is short.
Choices of ours: the kept gradient is the clipped one, so the way ahead is at most distance * max_grad_norm long, and
``noise`` has the same length; noise has one scale for all weights. The way is along the gradient also under AdamW,
whose own step has another direction. The default distance is ours and not tuned: about the length of an AdamW step of
rate 1e-5 on 100 million weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from anytune.methods.mixing import private_generator
from anytune.methods.of_base import check_names
from anytune.methods.parts import is_part, local, part_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.step import trainable
from anytune.methods.swapping import Swap


def extrapolated(weight: Tensor, direction: Tensor, distance: float) -> Tensor:
    """``weight - distance * direction``; a new tensor."""
    return torch.sub(weight, direction, alpha=distance)


@register
@dataclass(kw_only=True)
class Extrapolation(Method):
    """Gradients at weights moved on by the last gradient, or by noise."""

    distance: Annotated[
        float, Field(ge=0, description="gamma hat: how far the gradient is taken ahead; 0 = plain training")
    ] = 0.1
    direction: Annotated[
        Literal["gradient", "noise"], Field(description="gradient = along that of the step before; noise = at random")
    ] = "gradient"

    neutral = {"distance": 0.0}  # noqa: RUF012
    swaps = True

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Nothing is changed."""
        self._seed, self._step, self._swap = run.seed, 0, Swap()
        self._previous: dict[str, Tensor] = {}
        return model

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Keep each step's gradients as the optimizer gets them."""
        if self.distance and self.direction == "gradient":
            optimizer.register_step_pre_hook(self._keep)

    def _keep(self, optimizer: optim.Optimizer, *_: Any) -> None:
        # added to what is there: a method may make the optimizer's step in parts
        self._previous |= {
            name: parameter.grad.detach().clone()
            for group in optimizer.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter.grad is not None
        }

    def before_step(self, model: nn.Module) -> None:
        """Put the extrapolated weights in place."""
        if not self.distance:
            return
        weights = trainable(model)
        if self.direction == "noise":
            places = {name: index for index, name in enumerate(weights)}
            total = sum(weight.numel() for weight in weights.values())
            self._swap.put(
                weights,
                lambda name, values: extrapolated(
                    values, self._noise(places[name], weights[name]), self.distance / math.sqrt(total)
                ),
            )
        elif self._previous:
            check_names(self._previous, model, self)
            known = {name: weight for name, weight in weights.items() if name in self._previous}
            self._swap.put(
                known, lambda name, values: extrapolated(values, self._gradient(name, known[name]), self.distance)
            )
            self._previous = {}  # used up; its memory is free for the backward pass

    def _noise(self, index: int, weight: nn.Parameter) -> Tensor:
        """Standard normal numbers for (this process's part of) a weight, the same whoever draws them."""
        generator = private_generator(self._seed, self._step, index, weight.device)
        drawn = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
        return part_of(drawn, weight).to(weight.dtype)

    def _gradient(self, name: str, weight: nn.Parameter) -> Tensor:
        """The kept gradient of (this process's part of) a weight; out of a checkpoint it comes whole."""
        kept = self._previous[name]
        return local(kept) if is_part(kept) else part_of(kept, weight)

    def after_backward(self, model: nn.Module) -> None:
        """Put the true weights back."""
        self._swap.restore()

    def after_step(self, model: nn.Module) -> None:
        """Count optimizer steps: the next one has other noise."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of optimizer steps made, and the gradient kept of the last."""
        return {"step": self._step, "previous": dict(self._previous)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at that step with that gradient."""
        self._step = int(state["step"])
        self._previous = dict(state.get("previous", {}))
