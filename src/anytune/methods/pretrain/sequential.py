"""Sequential continual pre-training: go on with ordinary language modelling on each domain in turn.

In plain words: take the base as it is and train it on the next domain's text with the loss it was pre-trained with.
Nothing protects what it knew. It is the control every other pre-training method is measured against.

Formula: L = mean over scored tokens of -log p(token | context); masked language modelling hides 15 % of the tokens
(80 % mask, 10 % random word, 10 % kept), causal language modelling scores every next token.

Paper: continual pre-training as in Gururangan et al. 2020 (DAPT); the masking of Devlin et al. 2019.
Costs: one forward and one backward per step; AdamW's 8 bytes of state per weight; no extra memory.
When not to use it: when tasks of earlier domains must keep their quality and nothing else is done about it.
Choices of ours: none; it is the do-nothing method.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.methods.protocol import Method
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Sequential(Method):
    """Plain continued pre-training; it has no settings."""

    neutral = {}  # noqa: RUF012 - it is plain training
