"""Sequential continual pre-training: go on with ordinary language modelling on each domain in turn.

In plain words: take the base as it is and train it on the next domain's text with the loss it was pre-trained with.
Nothing protects what it knew. It is the control every other pre-training method is measured against.

Formula: L = mean over scored tokens of -log p(token | context); masked language modelling hides 15 % of the tokens
(80 % mask, 10 % random word, 10 % kept), causal language modelling scores every next token.

Paper: continual pre-training as in Gururangan et al. 2020 (DAPT); the masking of Devlin et al. 2019.
Costs: one forward and one backward per step; AdamW's 8 bytes of state per weight; no extra memory.
When not to use it: when tasks of earlier domains must keep their quality and nothing else is done about it.
Choices of ours: ``head_rate``, for bases whose file holds no pre-training head: a freshly drawn head may learn faster
than the body it sits on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.anatomy import Anatomy


@register
@dataclass(kw_only=True)
class Sequential(Method):
    """Plain continued pre-training."""

    head_rate: Annotated[
        float, Field(gt=0, le=1000, description="learning rate of the pre-training head, as a multiple of the body's")
    ] = 1.0
    _anatomy: Anatomy | None = field(default=None, init=False, repr=False)

    neutral = {"head_rate": 1.0}  # noqa: RUF012 - it is plain training

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Keep the anatomy, which says what the head is."""
        self._anatomy = run.anatomy
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups with the head's part split off, if its rate differs."""
        if self.head_rate == 1.0 or self._anatomy is None:
            return groups
        split = []
        for group in groups:
            for in_head in (False, True):
                chosen = [
                    (name, parameter)
                    for name, parameter in zip(group["names"], group["params"], strict=True)
                    if self._anatomy.is_pretraining_head(name) == in_head
                ]
                if chosen:
                    split.append(
                        {
                            **group,
                            "names": [name for name, _ in chosen],
                            "params": [parameter for _, parameter in chosen],
                            "lr": group["lr"] * (self.head_rate if in_head else 1.0),
                        }
                    )
        return split
