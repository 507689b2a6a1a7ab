"""Initialise and distil: start from the outdated weights, and learn from the labels and the old model.

In plain words: ``initialize`` puts the run where the old weights land on the new base; ``distill`` keeps it close to
what the old model knows while it learns. Together the start is good and the way is short.

Formula: theta_0 = M_{i+1} + (tuned(M_i) - M_i), head_0 = head_old; then the loss of ``distill``:
L = (1 - alpha) * CE + alpha * T^2 * KL(softmax(z_old / T) || softmax(z_new / T)) + beta * hidden states' term.

Paper: Qin, Qian et al. 2023 (Recyclable Tuning), both methods together.
Costs: those of ``distill``: one pass of the old model over the training texts before the first step, and a look-up in
each step.
When not to use it: when the weights cannot be put onto the new base (another shape: use ``distill``); when labelled
data is plenty (then the old model soon has nothing to say that the labels do not).
Choices of ours: those of ``initialize`` (the head is copied and stays trainable, a fresh optimizer) and of
``distill``, settings and defaults included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from anytune.methods.protocol import Run
from anytune.methods.recycle.direct import install
from anytune.methods.recycle.distill import Distill
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Combined(Distill):
    """Outdated weights as the starting point, the old model as a teacher."""

    neutral = {"alpha": 0.0, "beta": 0.0}  # noqa: RUF012 - initialize
    begins: ClassVar[Literal["moved", "made", "fresh"]] = "moved"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Write the outdated weights into the model, then ask the old one."""
        return super().prepare(install(model, run, self.name), run)
