"""Initialise from outdated weights, then tune: start where the old weights land on the new base.

In plain words: do what ``direct`` does, then fine-tune on the task as usual. Because the start is close to a good
solution, training reaches the score of fresh tuning in fewer steps, and often goes a little further.

Formula: theta_0 = M_{i+1} + (tuned(M_i) - M_i), head_0 = head_old; then ordinary training from there.

Paper: Qin, Qian et al. 2023 (Recyclable Tuning), initialization-based method.
Costs: as the tune method it is combined with; the outdated weights are read once.
When not to use it: when no labelled data is left (use ``direct``, or distillation from unlabelled text); when the
new task has other labels than the old one.
Choices of ours: the head is copied exactly and stays trainable (the published adapter scripts froze it without saying
so, which makes baseline and method differ in more than the start); the set of trained weights is the same as in fresh
tuning; the optimizer starts fresh.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from anytune.methods.protocol import Method, Run
from anytune.methods.recycle.direct import install
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Initialize(Method):
    """Outdated weights as the starting point; it has no settings."""

    neutral = None
    neutral_reason = "the start is the method; with an all-zero delta and a fresh head it is fresh tuning"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Write the outdated weights into the model; the tune methods come after it."""
        return install(model, run, self.name)
