"""Sums of squared gradients, entry by entry: how much a loss cared about each weight (a diagonal Fisher estimate).

The square is taken of a batch's mean gradient, along the way of training, not of each example's gradient at one
point. Sums are kept in fp32 or wider: in half precision they stop growing after a few hundred terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from anytune.methods.parts import local
from anytune.methods.step import upcast


def present_gradients(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's part of each gradient that is there, by name, in fp32 or wider."""
    found = {name: local(weight.grad) for name, weight in weights.items() if weight.grad is not None}
    return {name: g.float() if g.dtype in (torch.bfloat16, torch.float16) else g for name, g in found.items()}


def all_finite(tensors: Mapping[str, Tensor]) -> Tensor:
    """Whether every entry of every tensor is finite: a boolean scalar on their device; nothing waits for it."""
    return torch.stack(torch._foreach_norm(list(tensors.values()))).sum().isfinite()


def add_squares(sums: dict[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """``sums[name] += gradient^2``, in place; a name that is new begins at its square."""
    new = [name for name in gradients if name not in sums]
    old = [name for name in gradients if name in sums]
    if new:
        values = [gradients[name] for name in new]
        sums.update(zip(new, torch._foreach_mul(values, values), strict=True))
    if old:
        values = [gradients[name] for name in old]
        torch._foreach_addcmul_([sums[name] for name in old], values, values)


def gradient_norms(terms: Mapping[str, Tensor], weights: list[Tensor]) -> dict[str, float]:
    """The length of each loss term's gradient over ``weights``; the graph stays for the backward pass to come.

    Whether two terms have weights that go together is read off here: a term whose gradient is a thousandth of
    another's does nothing.
    """
    norms = {}
    for name, term in terms.items():
        found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        squares = [float(upcast(one).square().sum()) for one in found if one is not None]
        norms[name] = math.sqrt(sum(squares))
    return norms
