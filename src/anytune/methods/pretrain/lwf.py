"""LwF: answer the new domain's gaps as the base did before, while learning the right answers.

In plain words: a frozen copy of the base, as it was when the stage began, reads the same masked text. The model learns
the hidden words, and is asked at each of them to keep its whole distribution of guesses near that of the copy. No old
text is needed: the new text asks what the old model would have said.

Formula: L = CE + weight * T^2 * KL(softmax(z0 / T) || softmax(z / T)), z and z0 the vocabulary logits [items, words]
of the model and of the copy at the scored positions, T the temperature; the mean over items.

Paper: Li, Hoiem 2016 (Learning without Forgetting), which distils a classifier's old outputs; on the logits of
language modelling, and on each domain in turn, as a baseline of continual pre-training.
Costs: a second forward without gradients, about a third more time; a frozen copy of the weights; twice the vocabulary
logits at the scored positions (with 15 % masked these are few; a decoder scores all).
When not to use it: when the new domain is so far from the old that what the base says about it is noise to hold on to.
Choices of ours: vocabulary logits at scored positions (the nearest published code compares hidden states of unmasked
text); temperature 2 as in the paper; the copy answers without dropout, so that at the start the model's own dropout is
all that differs; the copy is made anew in each stage. The default weight is ours and not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from anytune.methods.consistency import FrozenCopy
from anytune.methods.distillation import logit_distillation
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class LwF(Method):
    """Distillation of the base of the stage's beginning on the new domain's text."""

    weight: Annotated[float, Field(ge=0, le=1000, description="weight of the divergence from the copy's answers")] = (
        1.0
    )
    temperature: Annotated[
        float, Field(gt=0, le=100, description="T: both answers are softened by it; the term is multiplied by T^2")
    ] = 2.0

    neutral = {"weight": 0.0}  # noqa: RUF012 - no copy is made then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Copy the base as it is."""
        self._plain: Any = run.needed("objective", self) if self.weight else None
        self._teacher = FrozenCopy(model, self.name) if self.weight else None
        return model

    def before_step(self, model: nn.Module) -> None:
        """See that the copy is where the model computes."""
        if self._teacher is not None:
            self._teacher.place(model)

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms and the divergence from the copy's answers; none for a batch without a scored position."""
        if self._teacher is None or not len(output.logits):
            return terms
        with torch.no_grad():
            before = self._plain.forward(self._teacher.model, batch).logits
        return {**terms, "lwf": self.weight * logit_distillation(output.logits, before, self.temperature)}
