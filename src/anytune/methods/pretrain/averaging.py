"""Averaging: keep a mean of weights along the stream in place of the last ones.

In plain words: weights that come from one another can be averaged, and the mean often serves old and new text better
than either end. After each stage the new base is a mean of what the stage began with and what it ended in (or a
moving average of the weights along its steps), and the next stage goes on from there.

Formula: with w_0 the weights a stage began with and w those it ended in, the base it leaves is (1 - a) * w_0 + a * w.
``form: start``: a = share. ``form: stages``: a = 1 / (t + 1) in stage t = 1, 2, ..., which makes it the plain mean of
the first base and what every stage ended in. ``form: steps``: m <- decay * m + (1 - decay) * w after every optimizer
step, from m = w_0 on; the base it leaves is m.

Paper: Wortsman et al. 2022 (Robust fine-tuning of zero-shot models) for the mean of both ends; Izmailov et al. 2018
(Averaging Weights Leads to Wider Optima) for means along a run.
Costs: one pass over the weights at the end of a stage and a copy of them in main memory; ``steps`` a copy beside the
weights and a pass over them in every step.
When not to use it: when a stage moved so far (a high rate, a freshly drawn embedding) that what lies between its ends
is worse than both; look at the held-out loss.
Choices of ours: every trained weight is averaged, embeddings and pre-training head included, but for head weights that
the base's file did not hold: their w_0 was drawn at random. What is scored and stored is the mean; the curve of a run
shows the weights that were trained. The defaults (half and half, and a decay of 0.99) are ours and not tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from anytune.methods.anchors import Anchors
from anytune.methods.consistency import MovingAverage
from anytune.methods.of_base import weights_of_base
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Averaging(Method):
    """A mean of weights in place of the last ones."""

    form: Annotated[
        Literal["start", "stages", "steps"],
        Field(
            description="start = mean with the beginning; stages = equal parts of all stages; steps = a moving average"
        ),
    ] = "start"
    share: Annotated[
        float, Field(gt=0, le=1, description="start: the trained weights' part in the mean; 1 = keep them as they are")
    ] = 0.5
    decay: Annotated[
        float, Field(ge=0, lt=1, description="steps: part of the moving average that each step keeps")
    ] = 0.99

    neutral = {"form": "start", "share": 1.0}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the weights that the stage begins with.

        Raises:
            MethodError: no weight of the base is trained.
        """
        self._stages = int(run.carried.get(self.name, {}).get("stages", 0))
        self._anchors: Anchors | None = None
        self._moving: MovingAverage | None = None
        self._averaged: list[str] = []
        if self.form == "start" and self.share == 1.0:
            return model
        weights = weights_of_base(model, run, self)
        self._averaged = list(weights)
        if self.form == "steps":
            self._moving = MovingAverage(model, self.name, self.decay)
        else:
            self._anchors = Anchors("cpu")
            self._anchors.take({name: weight.cpu() for name, weight in weights.items()})
        return model

    def before_step(self, model: nn.Module) -> None:
        """Begin the moving average before the first step."""
        if self._moving is not None:
            self._moving.before_step(model)

    def after_step(self, model: nn.Module) -> None:
        """The moving average follows."""
        if self._moving is not None:
            self._moving.after_step(model)

    @torch.no_grad()
    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Put the mean in place."""
        weights = {name: weight for name, weight in model.named_parameters() if name in set(self._averaged)}
        if self._moving is not None:
            moved = dict(self._moving.model.named_parameters())
            for name, weight in weights.items():
                weight.copy_(moved[name])
        elif self._anchors is not None:
            share = self.share if self.form == "start" else 1 / (self._stages + 2)
            for name, weight in weights.items():
                weight.copy_(torch.lerp(self._anchors.at(name, weight), weight, share))
        return model

    def carry_state(self) -> dict[str, Any]:
        """How many stages have been made."""
        return {"stages": self._stages + 1}

    def state_dict(self) -> dict[str, Any]:
        """The moving average, where there is one."""
        return {"moving": self._moving.state_dict()} if self._moving is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the moving average."""
        if self._moving is not None:
            self._moving.load_state_dict(state["moving"])
