"""R-Drop: two passes with different dropout must answer alike.

In plain words: dropout makes a model answer a little differently each time. Every batch is read twice, in one forward
pass over the batch and a copy of it, each half with its own dropout. Both halves learn the labels, and a second term
pulls their answers together. What is left is a model that hangs less on any single unit.

Formula: L = (CE(p) + CE(q)) / 2 + alpha * (KL(p || q) + KL(q || p)) / 2, p and q: [items, outputs], the answers of the
two halves; each term a mean over items. For regression: L = (SE(y) + SE(z)) / 2 + alpha * (y - z)^2.

Paper: Wu et al. 2021 (R-Drop).
Costs: one forward and one backward over twice the rows: about twice the time and twice the memory for activations;
no further state.
When not to use it: without dropout, where both halves are equal and it only costs; where the step's memory is what
limits you.
Choices of ours: the divergence is a mean over items, so that ``alpha`` means the same for every batch size and every
kind of task. The published code sums it over batch and classes without dividing: its alpha of 1 is our alpha of 16 for
a batch of 16. The default 1 is not tuned by us. Items are examples, labelled words or labelled tokens, as the task has
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.methods.consistency import is_regression, squared_difference, symmetric_divergence
from anytune.methods.protocol import Batch, Method, Terms
from anytune.methods.registry import register


def doubled(batch: Batch) -> Batch:
    """The batch with a copy of its rows below them; ``num_items`` stays the number of distinct items.

    Every tensor with one row per text is doubled, whatever method put it there.
    """
    rows = len(next(batch[key] for key in ("input_ids", "inputs_embeds") if key in batch))
    return {
        key: torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
        for key, value in batch.items()
    }


@register
@dataclass(kw_only=True)
class RDrop(Method):
    """Regularised dropout."""

    alpha: Annotated[float, Field(ge=0, le=1000, description="weight of the divergence between the two halves")] = 1.0

    neutral = {"alpha": 0.0}  # noqa: RUF012 - nothing is doubled then

    def prepare_batch(self, batch: Batch) -> Batch:
        """The batch and a copy of it, in one."""
        return doubled(batch) if self.alpha else batch

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, which are means over both halves, and how far the halves lie apart."""
        if not self.alpha:
            return terms
        first, second = output.logits.chunk(2)
        if is_regression(batch):
            return {**terms, "rdrop": self.alpha * squared_difference(first, second)}
        return {**terms, "rdrop": self.alpha * symmetric_divergence(first, second) / 2}
