"""Full fine-tuning: every weight of the base and the head is trained.

In plain words: put a fresh head on the base and train everything on the task. The delta is the difference between the
tuned and the original body, with the head beside it.

Formula: theta* = argmin over theta, h of the mean task loss, from theta = the base, h = a seeded random head.

Paper: Devlin et al. 2019.
Costs: one forward and one backward per step; AdamW's 8 bytes of state per weight; a delta as large as the rows that
changed (an embedding row of a word the task never shows does not change and is not stored).
When not to use it: with very many tasks on a large base (LoRA's deltas are some hundred times smaller), or with a few
dozen examples, where its spread over seeds is largest.
Choices of ours: weight decay is 0 by default, so that untouched rows stay untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.methods.protocol import Method
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Full(Method):
    """Plain fine-tuning of everything; it has no settings."""

    neutral = {}  # noqa: RUF012 - it is plain training
    suggests = {"learning_rate": 5e-5}  # noqa: RUF012
