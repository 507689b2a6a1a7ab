"""How far below the head a weight sits, for methods that treat lower layers otherwise than upper ones."""

from __future__ import annotations

from torch import nn

from anytune.models.anatomy import Anatomy


def depths_below_head(model: nn.Module, anatomy: Anatomy) -> dict[str, int]:
    """Parameter name -> depth below the head: 0 for all that follows the blocks (pooler, last norm, head), 1 for the
    top block, n for the lowest of n, and one more than the longest list of blocks has for the embeddings.

    Encoder and decoder count each for itself: every decoder block reads the encoder's last, so neither is the other's
    beginning. A head that shares the word embeddings' matrix is that matrix: an embedding.

    Args:
        model: a task or pre-training model, with PEFT around it or not.
        anatomy: of its kind.
    """
    stacks = [blocks for _, blocks in anatomy.block_stacks(model)]
    depths = {
        id(parameter): len(blocks) - place
        for blocks in stacks
        for place, block in enumerate(blocks)
        for parameter in block.parameters()
    }
    lowest = 1 + max(map(len, stacks))
    depths |= {id(parameter): lowest for parameter in embedding_parameters(model, anatomy)}
    return {name: depths.get(id(parameter), 0) for name, parameter in model.named_parameters()}


def embedding_parameters(model: nn.Module, anatomy: Anatomy) -> list[nn.Parameter]:
    """The weights of all that comes before the first block, and of what all blocks share."""
    backbone = anatomy.backbone(model)
    there = dict(backbone.named_modules())
    return [parameter for part in anatomy.embeddings if part in there for parameter in there[part].parameters()]
