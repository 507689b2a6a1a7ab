"""Mixout: train with random inputs of every linear map set back to the base's weights.

In plain words: dropout switches neurons off at random; Mixout sets the weights that leave them back to what they were
in the base. So the model learns to work with any mixture of the base and itself, which holds it near the base.

Formula: in each step the loss and its gradient are those of W' = W0 + m * (W - W0) / (1 - p) for each chosen
W [out, in], with W0 its value at the beginning and m [in] of 0 and 1, one draw for each input column, shared by all
rows, 1 with probability 1 - p; so the mean of W' is W. W gets the gradient g' * m (g' / (1 - p) * m with
``gradient_scale``), g' that of W'.

Paper: Lee, Cho, Kang 2020 (Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models).
Costs: one forward and one backward per step; W0 and W' beside W, 8 bytes per chosen weight (``anchor: bf16`` 6,
``cpu`` 4 and a copy to the device in every step); three passes over the chosen weights.
When not to use it: with much data, where staying near the base is no gain; together with another method that puts
other weights in place (extrapolation, dps in its Mix form).
Choices of ours: one m for a whole optimizer step, so that accumulating micro-batches changes nothing (the published
code draws in each forward pass). Dropout is left alone: the paper's runs have none besides Mixout, which here is the
training setting ``dropout=0``. The derivative's factor 1 / (1 - p) is left out by default, as in the published code;
AdamW does not see a constant factor, clipping does. Of a fresh head W0 is its initial value, as in the published code;
``include: backbone`` leaves head and pooler alone. A matrix that input embeddings share is never mixed. The default p
is ours and not tuned; the grid in the DPS paper's comparison runs from 0.1 to 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.errors import MethodError
from anytune.methods.anchors import Anchors, Place
from anytune.methods.chosen import Include, chosen_weights, transposed_names
from anytune.methods.mixing import column_mask, mixed
from anytune.methods.of_base import check_names
from anytune.methods.parts import is_part, local, part_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.swapping import Swap


@register
@dataclass(kw_only=True)
class Mixout(Method):
    """Random input columns set back to their anchors, one draw per optimizer step."""

    p: Annotated[float, Field(ge=0, lt=1, description="probability that an input's weights are the base's")] = 0.5
    include: Annotated[
        Include, Field(description="which linear maps: all (head too), backbone (the blocks), attention, feed_forward")
    ] = "all"
    gradient_scale: Annotated[
        bool, Field(description="divide the gradient by 1 - p: the true derivative, which the published code omits")
    ] = False
    anchor: Annotated[
        Place, Field(description="where the initial values are kept: device, cpu, or bf16 (on the device, rounded)")
    ] = "device"

    neutral = {"p": 0.0}  # noqa: RUF012
    swaps = True

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Choose the weights and take their values.

        Raises:
            MethodError: no linear map is trained.
        """
        self._seed, self._step = run.seed, 0
        self._swap, self._anchors = Swap(), Anchors(self.anchor)
        self._masks: dict[str, Tensor] = {}
        self._inputs: dict[str, int] = {}  # the dimension that a weight's inputs lie along
        if self.p:
            weights = chosen_weights(model, run.anatomy, self.include)
            if not weights:
                raise MethodError(
                    f"{self.name} found no linear map to mix (include={self.include})",
                    why="None of them is trained, so nothing would be done.",
                    fix=f"--method {self.name}   (alone, or after methods that train the base)",
                )
            transposed = transposed_names(model, weights)
            self._inputs = {name: 0 if name in transposed else 1 for name in weights}
            self._anchors.take(weights)
        return model

    def before_step(self, model: nn.Module) -> None:
        """Draw the step's masks and put the mixed weights in place.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if not self.p:
            return
        check_names(self._inputs, model, self)
        parameters = {name: weight for name, weight in model.named_parameters() if name in self._inputs}
        self._masks = {
            name: self._mask(index, name, parameters[name])
            for index, name in enumerate(self._inputs)
            if name in parameters
        }
        self._swap.put(
            parameters,
            lambda name, values: mixed(values, self._anchors.at(name, parameters[name]), self._masks[name], self.p),
        )

    def _mask(self, index: int, name: str, weight: nn.Parameter) -> Tensor:
        """The mask of a weight (of this process's part of it), of a shape that spreads over it."""
        inputs = self._inputs[name]
        columns = column_mask(self._seed, self._step, index, weight.shape[inputs], self.p)
        mask = columns.unsqueeze(1 - inputs)
        if is_part(weight):
            return part_of(mask.expand(weight.shape).contiguous(), weight)
        return mask.to(weight.device, non_blocking=True)

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Put the true weights back and hand them the gradients of the columns that were used."""
        if not self.p:
            return
        self._swap.restore()
        for name, weight in model.named_parameters():
            if name in self._masks and weight.grad is not None:
                gradient = local(weight.grad).mul_(self._masks[name])
                if self.gradient_scale:
                    gradient.div_(1 - self.p)
        self._masks = {}

    def after_step(self, model: nn.Module) -> None:
        """Count optimizer steps: the next one has other draws."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of optimizer steps made; the draws follow from it."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at that step."""
        self._step = int(state["step"])
