"""Initialise from outdated weights, then tune: start where the old weights land on the new base.

In plain words: do what ``direct`` does, then fine-tune on the task as usual. Because the start is close to a good
solution, training reaches the score of fresh tuning in fewer steps, and often goes a little further.

Formula: theta_0 = M_{i+1} + scale * (tuned(M_i) - M_i), head_0 = head_old; then ordinary training from there.

Paper: Qin, Qian et al. 2023 (Recyclable Tuning), initialization-based method. Lin et al. 2025 (fine-tuning transfer)
do the same with difference vectors of language models: transfer, then a short tuning. Their recipe is this method with
``scale`` 1 and few steps (``--steps 100``); base after base it is their iterative form, from the first base at once
the direct one.
Costs: as the tune method it is combined with; the outdated weights are read once.
When not to use it: when no labelled data is left (use ``direct``, or distillation from unlabelled text); when the
new task has other labels than the old one; when the old weights land so badly that the bare base answers better (Lin
et al. show such a case across several versions): a smaller ``scale``, or fresh tuning.
Choices of ours: the head is copied exactly and stays trainable (the published adapter scripts froze it without saying
so, which makes baseline and method differ in more than the start); the set of trained weights is the same as in fresh
tuning; the optimizer starts fresh; ``scale`` takes a part of the difference only (``scaled`` finds out which part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from anytune.methods.protocol import Method, Run
from anytune.methods.recycle.direct import install
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Initialize(Method):
    """Outdated weights as the starting point."""

    scale: Annotated[
        float, Field(ge=-2, le=4, description="how much of the outdated difference is added; 0 takes the head alone")
    ] = 1.0

    neutral = None
    neutral_reason = "the start is the method; with an all-zero delta and a fresh head it is fresh tuning"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Write the outdated weights into the model; the tune methods come after it."""
        return install(model, run, self.name, self.scale)
