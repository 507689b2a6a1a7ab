"""MPT: a prompt shared by several tasks, times what is the task's own.

In plain words: what the prompts of several tasks have in common is one prompt; a task changes it by a factor for each
place times a factor for each value. These factors have few entries, and training begins at factors of 1: at the shared
prompt itself.

Formula: P = S * (U V) entry by entry, S: [n, w] the shared prompt (n places, w values at a place), U: [n, rank],
V: [rank, w]. With rank 1 it is S_ij u_i v_j. ``shared: mean``: S is the mean of the k sources P_j, U V all ones.
``shared: factored``: S, u_j, v_j are what brings sum_j ||P_j - S * (u_j v_j)||^2 down, and u, v begin at their means.

Paper: Wang et al. 2023 (Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning), its second part.
Costs: one forward and one backward per step; (n + w) * rank trained weights beside the prompt's n * w, or in place of
them with ``shared_rate: 0``; what is stored is one plain prompt, the product. ``factored`` takes ``rounds`` passes
over the sources before training.
When not to use it: with one source, where the product is ``prompt_transfer`` with other rates for places and values;
with sources of another length or kind (refused).
Choices of ours: the paper learns S and the factors by distilling from each source's prompt on each source's texts.
Here only the sources' prompts are at hand and not their texts, so S comes from the prompts alone, by their mean or by
alternating least squares. The factors have no weight decay: that would draw them to 0, and the prompt with them. S is
trained too, at ``shared_rate`` times the run's rate; 0 keeps it as it is. A rank above 1 adds products that are 0 at
the start, their U drawn from the run's seed. None of the defaults is tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.methods.mixing import private_generator
from anytune.methods.of_base import split_groups
from anytune.methods.prompts import RATE, Dropout, put_on
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.several_prompts import several_prompts
from anytune.models.layout import SOFT_PROMPT
from anytune.models.soft_prompts import SoftPrompt, make_prompt

# ---------------------------------------------------------------------- on tensors


def product(shared: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``S * (U V)`` [n, w] entry by entry.

    Args:
        shared: S, [n, w].
        left: U, [n, rank].
        right: V, [rank, w].
    """
    return shared * (left @ right)


def factored(sources: Tensor, rounds: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """A shared prompt and rank-1 factors of each source, by alternating least squares.

    Each round replaces S, then all u_j, then all v_j, by what makes ``sum_j ||P_j - S * (u_j v_j)||^2`` smallest with
    the other two held, so that no round makes it larger. Factors have a mean of 1 over the sources' u, and over their
    v; where nothing determines an entry (its S is 0 everywhere), it stays as it was.

    Args:
        sources: P, [k, n, w].
        rounds: how often; 0 gives the mean and factors of 1.

    Returns:
        S [n, w], u [k, n], v [k, w], in the sources' dtype; computed in fp64.
    """
    given = sources.double()
    shared = given.mean(dim=0)
    left, right = given.new_ones(given.shape[:2]), given.new_ones(given.shape[0], given.shape[2])
    for _ in range(rounds):
        left = _solved((given * shared * right[:, None, :]).sum(2), (shared * right[:, None, :]).square().sum(2), left)
        right = _solved((given * shared * left[:, :, None]).sum(1), (shared * left[:, :, None]).square().sum(1), right)
        factors = left[:, :, None] * right[:, None, :]
        shared = _solved((given * factors).sum(0), factors.square().sum(0), shared)
    for factor in (left, right):
        scale = factor.mean()
        if scale.abs() > torch.finfo(torch.float32).eps:
            factor /= scale
            shared = shared * scale
    return shared.to(sources), left.to(sources), right.to(sources)


def _solved(numerator: Tensor, denominator: Tensor, before: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=torch.finfo(torch.float64).tiny), before)


# ---------------------------------------------------------------------- the module and the method


class PromptProduct(SoftPrompt):
    """A prompt that is a shared one times a task's factors.

    Args:
        shared: what becomes S.
        left: U, [n, rank].
        right: V, [rank, w].
    """

    def __init__(self, shared: SoftPrompt, left: Tensor, right: Tensor) -> None:
        super().__init__(shared.config, shared.layout)
        self.table = shared.table
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    def values(self) -> Tensor:
        """The product, [n, w]."""
        return product(self.table, self.left, self.right)


@register
@dataclass(kw_only=True)
class MPT(Method):
    """A shared prompt of several tasks times factors of the task's own."""

    shared: Annotated[
        Literal["mean", "factored"],
        Field(description="where the shared prompt comes from: the mean of the sources, or least squares"),
    ] = "mean"
    rank: Annotated[int, Field(ge=1, le=64, description="of the task's factors; 1 is the paper's")] = 1
    rounds: Annotated[int, Field(ge=1, le=1000, description="of the least squares, with shared=factored")] = 20
    shared_rate: Annotated[
        float, Field(ge=0, le=1000, description="rate of the shared prompt, as a multiple of the run's; 0 = frozen")
    ] = 1.0
    dropout: Dropout = 0.1
    init_std: Annotated[
        float, Field(gt=0, le=10, description="standard deviation of the factors beyond rank 1 that start at random")
    ] = 0.02

    neutral = None
    neutral_reason = "a prompt shared by several tasks is the method; from one source it is prompt_transfer"
    takes = ("sources",)
    suggests = {"learning_rate": RATE}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put the product on; trained are the factors, the shared prompt unless it is frozen, and the head.

        Raises:
            MethodError: there is no source, sources of different kind or length or for another base, or an adapter on
                the model.
        """
        config, sources = several_prompts(model, run, self, self.dropout)
        common, left, right = factored(sources, self.rounds if self.shared == "factored" else 0)
        first = make_prompt(model, config, run.anatomy, run.seed, values=common)
        more = torch.randn(config.length, self.rank - 1, generator=private_generator(run.seed, 0, 0)) * self.init_std
        left = torch.cat([left.mean(dim=0)[:, None], more], dim=1)
        right = torch.cat([right.mean(dim=0)[None], torch.zeros(self.rank - 1, right.shape[1])])
        prompt = PromptProduct(first, left, right)
        model = put_on(model, run, self, prompt)
        prompt.table.requires_grad_(self.shared_rate > 0)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The shared prompt at its own rate; factors without decay, which would draw the whole prompt to 0."""
        named = {f"{SOFT_PROMPT}.{part}": part for part in ("table", "left", "right")}
        made = []
        for part, group in split_groups(groups, lambda name, weight: named.get(name, "")):
            if part == "table":
                group = {**group, "lr": group["lr"] * self.shared_rate}
            elif part:
                group = {**group, "weight_decay": 0.0}
            made.append(group)
        return made
