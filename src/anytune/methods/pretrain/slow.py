"""Slow: the same training at a fraction of the learning rate, risen to again in every stage.

In plain words: whoever moves less forgets less, and learns less. Each domain is trained as usual, but at a lower rate,
which rises from near zero as a stage begins. A method against forgetting that does no better than this has found no
more than a way to learn less.

Formula: the rate of step s in stage t is eta(s) * rate * falling^(t-1) * min(1, (s + 1) / (n + 1)), with eta the
schedule of the training settings, n = round(warmup * steps) the steps over which it rises, and t = 1 for the first
stage of a stream.

Paper: rising and falling anew on new text as in Gupta et al. 2023 (Continual Pre-Training of Large Language Models:
How to re-warm your model?); the lower rate is the simplest control there is.
Costs: those of ``sequential``, to the bit of memory.
When not to use it: when the new domain has to be learned well, and the steps are few.
Choices of ours: ``rate`` counts in the first stage, too: the base was trained before anything here began. The rise
stands beside the ``warmup`` of the training settings, which is a part of eta. The defaults are ours and not tuned: try
rates of 0.5, 0.3 and 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn, optim

from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


def rise(step: int, rising: int) -> float:
    """The share of the rate in step ``step`` (0-based) of a stage whose rate rises over its first ``rising`` steps."""
    return min(1.0, (step + 1) / (rising + 1))


@register
@dataclass(kw_only=True)
class Slow(Method):
    """A lower learning rate, with a rise of its own."""

    rate: Annotated[float, Field(gt=0, le=1, description="multiple of the learning rate in every stage")] = 0.3
    falling: Annotated[
        float, Field(gt=0, le=1, description="multiple of the rate of the stage before, from the second stage on")
    ] = 1.0
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="share of a stage's steps over which its rate rises from near zero")
    ] = 0.1

    neutral = {"rate": 1.0, "falling": 1.0, "warmup": 0.0}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """See which stage of a stream this is."""
        self._stages = int(run.carried.get(self.name, {}).get("stages", 0))
        self._rising, self._step = round(self.warmup * run.steps), 0
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups at this stage's rate."""
        share = self.rate * self.falling**self._stages
        return groups if share == 1.0 else [{**group, "lr": group["lr"] * share} for group in groups]

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Let the rate rise: whoever keeps the schedule sets it before every step, and this takes its share."""
        if self._rising:
            optimizer.register_step_pre_hook(self._lower)

    def _lower(self, optimizer: optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= rise(self._step, self._rising)

    def after_step(self, model: nn.Module) -> None:
        """Count the steps of the stage."""
        self._step += 1

    def carry_state(self) -> dict[str, Any]:
        """How many stages have been made."""
        return {"stages": self._stages + 1}

    def state_dict(self) -> dict[str, Any]:
        """The step of the stage."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at that step."""
        self._step = int(state["step"])
