"""Re-basin: bring the outdated difference into the new base's order of heads and neurons, then add it.

In plain words: two bases may hold the same neuron, or the same attention head, at different places. The difference
was learned for the old places. Here each old head and neuron is matched with the new one that computes most alike,
and the difference moves along; then it is added as it is. Nothing is trained.

Formula: theta_new = M_{i+1} + P(delta), P the permutation of feed-forward neurons, of attention heads and of the
entries inside heads that makes P(M_i) most like M_{i+1}: heads are paired by the cosine of the maps they compute
(query^T key, and out value), entries and neurons by the inner product of all their weights; both pairings are exact
optima (assignment problem). head_new = head_old.

Paper: Rinaldi et al. 2025 (TransFusion), two-level permutation of attention; Ainsworth et al. 2023 (Git Re-Basin) for
weight matching.
Costs: no forward, no backward pass. Matching n neurons takes time of the order n^2 where the bases agree and n^3
where they do not; the similarity table of one block, n^2 numbers.
When not to use it: after continued pre-training, which moves no neuron to another place: the best permutation is then
none, and this is ``direct`` at a higher price. It is made for bases that were pre-trained apart. Where shapes differ
(``mapped``). For soft prompts.
Choices of ours: the hidden states between blocks keep their order. Heads are compared by what they compute, which
does not depend on the order inside them (TransFusion compares singular values). Heads stay in place in kinds whose
blocks share biases by head (T5); the entries of queries and keys in kinds that turn them by position (rotary). Where
staying in place is as good, nothing moves. A LoRA's factors are permuted, so it stays a LoRA.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import nn

from anytune.errors import MethodError
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.matching import match
from anytune.models.permutation import Orders, Symmetry, moved_share, permute, permute_adapter, symmetries

if TYPE_CHECKING:
    from anytune.models.base import Base

Level = Literal["heads", "inside", "neurons"]


def best_orders(old: Base, new: Base, levels: Collection[str]) -> tuple[list[Symmetry], Orders]:
    """The units of two bases of equal shapes, and the order of the old ones that fits the new base best.

    Args:
        old, new: of the same kind.
        levels: what may move: "heads", "inside" (the entries of a head), "neurons".
    """
    anatomy, before, after = new.anatomy, old.tensors(), new.tensors()
    units = symmetries({name: before.shape(name) for name in before}, anatomy, new.config)
    units = [one for one in units if one.kind == "heads" or "neurons" in levels]
    rotary = anatomy.position_table is None and not anatomy.encoder_decoder
    attention = not {"heads", "inside"}.isdisjoint(levels)
    orders = match(
        before, after, units, heads=attention, inside="inside" in levels, rotary=rotary,
        fixed_heads=anatomy.encoder_decoder or "heads" not in levels,
    )  # fmt: skip
    return units, orders


@register
@dataclass(kw_only=True)
class Rebasin(Method):
    """Outdated weights in the new base's order."""

    levels: Annotated[
        tuple[Level, ...],
        Field(description="what may change places: attention heads, entries inside heads, feed-forward neurons"),
    ] = ("heads", "inside", "neurons")

    trains = False
    neutral = None
    neutral_reason = "nothing is trained; with levels [] it is direct reuse"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Match the bases' units, permute the difference and add it.

        Raises:
            MethodError: there are no outdated weights, or they change no weight of the base.
            DeltaError: they do not fit the new base.
        """
        outdated = outdated_of(run, self.name)
        if outdated.kind == "prompt":
            raise MethodError(
                "a soft prompt has no heads or neurons to permute",
                why="It stands beside the words.",
                fix="--method direct",
            )
        lora = outdated.kind == "lora"
        difference = {} if lora else outdated.difference()  # refuses what does not fit
        if not (lora or difference):
            self._said = "rebasin: the weights change nothing of the base, so nothing has changed places"
            return outdated.install(model)
        units, orders = best_orders(outdated.old_base, outdated.new_base, self.levels)
        self._said = f"rebasin: {moved_share(orders):.1%} of heads' entries and neurons change places"
        if lora:
            return outdated.install_adapter(
                model, lambda tensors: permute_adapter(tensors, units, orders, run.anatomy)
            )
        return outdated.install_difference(model, permute(difference, units, orders))

    def notes(self) -> list[str]:
        """How much moved."""
        return [self._said]
