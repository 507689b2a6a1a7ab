"""Top-K layers: train only the top K blocks and the head.

In plain words: freeze the embeddings and all but the last K blocks; what is left is trained as in plain tuning. The
lower blocks keep what they know, and cost no gradients and no moments.

Formula: theta_i = the base's for every weight i below the last K blocks; all else as in plain training.

Paper: Lee, Tang, Lin 2019 (What would ELSA do?); Zhang et al. 2021 (Revisiting few-sample BERT fine-tuning) among the
rivals.
Costs: one forward; the backward ends at the lowest trained block; moments for the trained weights only. The delta
holds the trained blocks and nothing else.
When not to use it: where the task's words or texts are unlike those of the base (the lower blocks and the embeddings
then have to move), or with much data.
Choices of ours: k = 2, the quarter of the blocks of the paper, rounded up, for a base of six. The blocks of an
encoder-decoder count as one pile, the decoder's on the encoder's: k first takes the decoder's last. What follows the
last trained block (pooler, last norm, head) is trained. It only freezes: what another method before it has frozen
stays so, and a method after it that trains a frozen block is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from anytune.errors import MethodError
from anytune.methods.freezing import freeze, refuse_thawed
from anytune.methods.heights import embedding_parameters
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.anatomy import Anatomy


def frozen_parameters(model: nn.Module, anatomy: Anatomy, k: int | None, embeddings: bool) -> set[int]:
    """``id`` of every parameter below the top ``k`` blocks (None: of all blocks), the embeddings among them or not."""
    blocks = anatomy.block_modules(model)
    below = blocks[: len(blocks) - k] if k is not None else []
    frozen = {id(parameter) for block in below for parameter in block.parameters()}
    for stack, own in anatomy.block_stacks(model)[:-1]:
        # an encoder's last norm lies below the decoder, and follows a block that may be frozen
        if any(own[-1] is block for block in below):
            half = anatomy.backbone(model).get_submodule(stack.blocks.split(".", 1)[0])
            frozen |= {id(parameter) for parameter in half.parameters()}
    embedded = {id(parameter) for parameter in embedding_parameters(model, anatomy)}
    return frozen - embedded if embeddings else frozen | embedded


@register
@dataclass(kw_only=True)
class TopKLayers(Method):
    """Only the last blocks and the head are trained."""

    k: Annotated[
        int | None, Field(ge=0, description="how many blocks are trained, from the top; 0: the head alone; null: all")
    ] = 2
    embeddings: Annotated[bool, Field(description="train the embeddings too; only where every block is trained")] = (
        False
    )

    neutral = {"k": None, "embeddings": True}  # noqa: RUF012
    suggests = {"learning_rate": 5e-5}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Freeze what lies below.

        Raises:
            MethodError: the base has fewer blocks, or embeddings are to be trained below frozen blocks.
        """
        self._anatomy = run.anatomy
        depth = len(run.anatomy.block_modules(model))
        if self.k is not None and self.k > depth:
            raise MethodError(
                f"top_k_layers: k = {self.k}, and this base has {depth} blocks",
                why="No more blocks can be trained than there are.",
                fix=f"k={depth}   (or k=null for all of them)",
            )
        if self.embeddings and self.k not in (None, depth):
            raise MethodError(
                f"top_k_layers: embeddings are to be trained below {depth - (self.k or 0)} frozen blocks",
                why="The method trains what is near the head; its embeddings go with the lowest block.",
                fix="embeddings=false   (or k=null)",
            )
        frozen = frozen_parameters(model, run.anatomy, self.k, self.embeddings)
        freeze(model, frozen)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups as they are.

        Raises:
            MethodError: another method trains what this one froze.
        """
        refuse_thawed(groups, frozen_parameters(model, self._anatomy, self.k, self.embeddings), self)
        return groups
