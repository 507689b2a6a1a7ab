"""Freeze: tune without the parts named.

In plain words: the parts of the base that are named keep the values pre-training gave them; all else is trained as in
plain tuning. What is frozen costs no moments, and is no part of the delta.

Formula: theta_i = the base's for every weight i of the parts named; all else as in plain training.

Paper: none of its own: it is the control beside methods that claim that a part must move. Lee, Tang, Lin 2019 (What
would ELSA do?) froze blocks from below; for a hypernetwork of prompts it is one of the ablations of HPrompt-CPT
(Jiang et al. 2023, "Towards Anytime Fine-tuning").
Costs: one forward; gradients only as far down as something is trained; moments for the trained weights only.
When not to use it: where the task needs what is frozen to move: its words, or prompts that suit it.
Choices of ours: parts are frozen where they stand, in any combination; ``blocks`` counts from the bottom, of an
encoder-decoder in the encoder and the decoder each for itself. ``embeddings`` are all that comes before the first
block and what all blocks share. A frozen hypernetwork goes on making prompts, the same for the same text at every
step. The head is always trained, but where it shares a matrix with embeddings that are frozen. ``top_k_layers`` counts
from the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from anytune.errors import MethodError
from anytune.methods.freezing import freeze, refuse_thawed
from anytune.methods.heights import embedding_parameters
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.anatomy import Anatomy

Part = Literal["hyperprompt", "embeddings"]


def frozen_parameters(model: nn.Module, anatomy: Anatomy, parts: Sequence[Part], blocks: int) -> set[int]:
    """``id`` of every parameter of the parts named and of the lowest ``blocks`` blocks of each list of blocks.

    Raises:
        MethodError: the model has no such part, or fewer blocks.
    """
    stacks = [own for _, own in anatomy.block_stacks(model)]
    if blocks > max(map(len, stacks)):
        raise MethodError(
            f"freeze: blocks = {blocks}, and this base has {max(map(len, stacks))}",
            why="No more blocks can be frozen than there are.",
            fix=f"blocks={max(map(len, stacks))}",
        )
    frozen = {id(parameter) for own in stacks for block in own[:blocks] for parameter in block.parameters()}
    if "embeddings" in parts:
        frozen |= {id(parameter) for parameter in embedding_parameters(model, anatomy)}
    if "hyperprompt" in parts:
        own = [parameter for name, parameter in model.named_parameters() if "hyperprompt" in name.split(".")]
        if not own:
            raise MethodError(
                "freeze: this base has no hypernetwork of prompts",
                why="Only a base that was pre-trained with prompts has one, so nothing would be frozen.",
                fix="a base made with   anytune pretrain ... --method hprompt   (or parts=embeddings)",
            )
        frozen |= {id(parameter) for parameter in own}
    return frozen


@register
@dataclass(kw_only=True)
class Freeze(Method):
    """The parts named are not trained."""

    parts: Annotated[
        list[Part],
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
        Field(description="a list of what is frozen: hyperprompt (the base's hypernetwork of prompts), embeddings"),
    ] = field(default_factory=lambda: ["embeddings"])
    blocks: Annotated[int, Field(ge=0, description="how many blocks are frozen, from the lowest up")] = 0

    neutral = {"parts": [], "blocks": 0}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Freeze the parts.

        Raises:
            MethodError: see ``frozen_parameters``.
        """
        self._anatomy = run.anatomy
        frozen = frozen_parameters(model, run.anatomy, self.parts, self.blocks)
        freeze(model, frozen)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups as they are.

        Raises:
            MethodError: another method trains what this one froze.
        """
        refuse_thawed(groups, frozen_parameters(model, self._anatomy, self.parts, self.blocks), self)
        return groups
