"""Masked reuse: only the entries of the outdated difference that point where the new base wants to go.

In plain words: a few labelled rows say, by their gradients on the new base, whether each weight should go up or down.
Entries of the old difference that go the same way are added, the others are left out. Nothing is trained.

Formula: theta_new = M_{i+1} + scale * (m * delta), m_k = 1 where sign(delta_k) = sign(-sum_j sign(g_jk)) over the
gradients g_j of j = 1 ... votes, taken at M_{i+1} with the old head (``vote: majority``); or where sign(delta_k) =
sign(-mean_j g_jk) (``vote: mean``). The head is copied.

Paper: Rinaldi et al. 2026 (GradFix): gradient signs of a few samples rectify a task vector for another pre-training.
Costs: one forward and one backward pass for each vote, ``rows`` times the number of classes of them by default; two
numbers more for each weight of the difference while they are counted. No optimizer.
When not to use it: when the base was only pre-trained on a little: there ``direct`` keeps everything, and half of a
good difference is cut away here (in EVIDENCE.md that costs up to half of the score). Without any labels. For soft
prompts, which have no base weights to point at.
Choices of ours: each row votes alone by default (``rows_a_vote``); rows are drawn with the run's seed, as many of
each class as there are, up to ``rows``; for other tasks than classification ``rows`` in all. Gradients are taken
without dropout, in fp32. Entries without a majority (a word that occurs in none of the rows has no gradient) are left
out as the formula says, or kept (``undecided: keep``). A LoRA or bottleneck of which entries are cut away is a
product no more: what is stored is a full difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.data.splits import permutation
from anytune.errors import MethodError
from anytune.methods.of_stream import answering, as_in_the_first_process, on_device
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.step import total

Vote = Literal["majority", "mean"]
Undecided = Literal["drop", "keep"]

# ---------------------------------------------------------------------- on tensors


def agreement_mask(difference: Tensor, gradient: Tensor, undecided: Undecided = "drop") -> Tensor:
    """True where a difference goes down the gradient: ``sign(difference) == sign(-gradient)``, both not 0.

    Args:
        difference: any shape.
        gradient: the same shape: a gradient, or a count of gradient signs.
        undecided: what is said where the gradient is 0.
    """
    agrees = torch.sign(difference) == -torch.sign(gradient)
    return torch.where(gradient == 0, torch.full_like(agrees, undecided == "keep"), agrees)


def masked_difference(
    difference: Mapping[str, Tensor], masks: Mapping[str, Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    """``scale * mask * difference`` by name; tensors of which nothing is left are absent.

    Where a mask is all True and the scale is 1, the difference keeps its bits.
    """
    made = {}
    for name, tensor in difference.items():
        left = torch.where(masks[name].to(tensor.device), tensor if scale == 1.0 else scale * tensor, 0.0)
        if bool(left.any()):
            made[name] = left
    return made


def count_votes(gradients: Iterable[Sequence[Tensor | None]], like: Sequence[Tensor], vote: Vote) -> list[Tensor]:
    """The sum of gradient signs, or of gradients, over all votes, in fp32; weights that a vote misses count 0."""
    sums = [torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device) for tensor in like]
    for found in gradients:
        for held, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                held.add_(torch.sign(gradient) if vote == "majority" else gradient)
    return sums


# ---------------------------------------------------------------------- rows and the method


def few_rows(encoded: Any, rows: int, seed: int) -> list[int]:
    """Rows of the training data: up to ``rows`` of each class, or ``rows`` in all where labels are no classes."""
    order = permutation(len(encoded), "votes", seed).tolist()
    labels = encoded.labels
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return order[:rows]
    chosen: list[int] = []
    seen: dict[int, int] = {}
    for row in order:
        label = int(labels[row])
        if seen.get(label, 0) < rows:
            seen[label] = seen.get(label, 0) + 1
            chosen.append(row)
    return chosen


@register
@dataclass(kw_only=True)
class Masked(Method):
    """Outdated weights, entry by entry only where a few gradients agree with them."""

    rows: Annotated[
        int, Field(ge=1, le=4096, description="labelled rows of each class that vote (in all, without classes)")
    ] = 8
    vote: Annotated[
        Vote, Field(description="majority: every gradient's sign counts once; mean: the gradients are added up")
    ] = "majority"
    rows_a_vote: Annotated[int, Field(ge=1, le=4096, description="rows whose mean gradient is one vote")] = 1
    undecided: Annotated[
        Undecided,
        Field(description="entries that no gradient reaches, or with as many votes up as down: drop or keep"),
    ] = "drop"
    scale: Annotated[
        float, Field(ge=0, le=4, description="how much of what is left is added; 0 gives the new base")
    ] = 1.0

    trains = False
    sharded = False
    neutral = None
    neutral_reason = "nothing is trained; a mask of ones is direct reuse, a mask of zeros the new base"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Let the rows vote on the new base with the old head, and add what they agree with.

        Raises:
            MethodError: there are no outdated weights, they are a soft prompt, or the run has no labelled rows.
            DeltaError: they do not fit the new base.
        """
        outdated = outdated_of(run, self.name)
        difference = outdated.difference()
        if not difference:
            raise MethodError(
                "these outdated weights change nothing of the base's body, so there is nothing to mask",
                why="A soft prompt stands beside the words; a delta may have trained its head alone.",
                fix="--method direct",
            )
        encoded = getattr(run.needed("batches", self), "encoded", None)
        if encoded is None or encoded.labels is None:
            raise MethodError(
                "masked needs labelled training rows", why="They vote by their gradients.", fix="--task FILE"
            )
        model = outdated.install_difference(model, {})  # the new base, under the old head
        chosen = few_rows(encoded, self.rows, run.seed)
        votes = [chosen[start : start + self.rows_a_vote] for start in range(0, len(chosen), self.rows_a_vote)]
        counted = self._counted(model, run, [encoded.batch(rows) for rows in votes], difference)
        masks = {name: agreement_mask(tensor, counted[name], self.undecided) for name, tensor in difference.items()}
        held = sum(int(tensor.count_nonzero()) for tensor in difference.values())
        kept = sum(int((masks[name] & (tensor != 0)).sum()) for name, tensor in difference.items())
        self._said = f"masked: {kept:,} of {held:,} entries kept ({kept / max(1, held):.1%}), by {len(votes)} votes"
        return outdated.install_difference(model, masked_difference(difference, masks, self.scale))

    def _counted(
        self, model: nn.Module, run: Run, batches: list[dict[str, Any]], difference: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Canonical name -> the votes' sum, on the CPU; zeros for what is no parameter of the model."""
        objective, device = run.needed("objective", self), run.device or torch.device("cpu")
        before = next(model.parameters()).device
        model.to(device)
        named = {run.anatomy.canonical(name): parameter for name, parameter in model.named_parameters()}
        weights = {name: named[name] for name in difference if name in named}
        were = {parameter: parameter.requires_grad for parameter in model.parameters()}
        for parameter in were:
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)

        def gradients() -> Iterable[Sequence[Tensor | None]]:
            for batch in batches:
                moved = on_device(batch, device)
                loss = total(objective.terms(objective.forward(model, moved), moved))
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                if not all(bool(one.isfinite().all()) for one in found if one is not None):
                    raise MethodError(
                        "masked: a gradient on the new base is not finite",
                        why="Its sign says nothing.",
                        fix="--method scaled, or initialize   (no gradient is taken on the bare new base)",
                    )
                yield found

        try:
            with torch.enable_grad(), answering(model):
                sums = count_votes(gradients(), list(weights.values()), self.vote)
        finally:
            for parameter, trained in were.items():
                parameter.requires_grad_(trained)
        counted = dict(zip(weights, sums, strict=True))
        as_in_the_first_process(counted)
        model.to(before)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in difference.items() if name not in counted}
        return {**{name: tensor.cpu() for name, tensor in counted.items()}, **zeros}

    def notes(self) -> list[str]:
        """How much of the difference was kept."""
        return [self._said]
