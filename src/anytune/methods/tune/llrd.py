"""LLRD: layer-wise learning-rate decay, lower blocks learn more slowly.

In plain words: the head learns at the full rate, the block below it at a little less, the next one at less again, and
the embeddings at the least. What lies lowest is the most general, and is kept closest to the pre-trained weights.

Formula: rate(block at depth d below the head) = learning_rate * decay^d; d = 0 for the head, the pooler and a last
norm, 1 for the top block, n for the lowest of n blocks, n + 1 for the embeddings.

Paper: Howard, Ruder 2018 (ULMFiT), as discriminative fine-tuning; Clark et al. 2020 (ELECTRA); Zhang et al. 2021
(Revisiting few-sample BERT fine-tuning).
Costs: those of plain training; a few more parameter groups, so the fused optimizer is called once for each.
When not to use it: with much data, where the lower blocks have to move; with a decay so small that the lowest blocks
stand still (0.8 on 24 blocks leaves the embeddings 0.4 % of the rate), where freezing them costs less.
Choices of ours: decay 0.95, the published value. In an encoder-decoder each half counts its own blocks; the embeddings
lie below the longer one. A vocabulary head that shares the embeddings' matrix learns at the embeddings' rate. The
schedule multiplies all rates alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from anytune.errors import MethodError
from anytune.methods.heights import depths_below_head
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


def split_group(group: dict[str, Any], depths: dict[str, int], decay: float) -> list[dict[str, Any]]:
    """One parameter group as several, the highest first: those at depth d learn at ``lr * decay ** d``.

    All else of the group (``weight_decay``) is kept; names and parameters keep their order.
    """
    made = []
    for depth in sorted({depths[name] for name in group["names"]}):
        pairs = [pair for pair in zip(group["names"], group["params"], strict=True) if depths[pair[0]] == depth]
        names, parameters = ([pair[place] for pair in pairs] for place in (0, 1))
        made.append({**group, "names": names, "params": parameters, "lr": group["lr"] * decay**depth})
    return made


@register
@dataclass(kw_only=True)
class LayerwiseDecay(Method):
    """A learning rate for each block, falling from the head to the embeddings."""

    decay: Annotated[
        float, Field(gt=0, le=1, description="rate of a block as a share of the rate of what is above it")
    ] = 0.95

    neutral = {"decay": 1.0}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Remember where the blocks are."""
        self._anatomy = run.anatomy
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Split each group by depth.

        Raises:
            MethodError: nothing that is trained lies in a block or below: all rates would be equal.
        """
        if self.decay == 1.0:
            return groups
        depths = depths_below_head(model, self._anatomy)
        for group in groups:  # what a method trains in place of a weight has a name below the weight's
            for name in group["names"]:
                depths.setdefault(name, depths.get(name.rpartition(".")[0], 0))
        if not any(depths[name] for group in groups for name in group["names"]):
            raise MethodError(
                "llrd found no trained weight in the blocks or the embeddings",
                why="Only the head is trained, so there is one rate and nothing to decay.",
                fix="leave llrd out",
            )
        return [part for group in groups for part in split_group(group, depths, self.decay)]
