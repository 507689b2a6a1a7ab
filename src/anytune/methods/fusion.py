"""Several prompts as one: weights from their similarities, and weighted means of values or of answers.

Early fusion joins the prompts before anything is trained, late fusion joins what several teachers answer. Pure
functions on tensors, shared by the methods that are given several stored prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from anytune.errors import MethodError

#: softmax: ``exp(w_k / t) / sum_j exp(w_j / t)``; share: ``w_k / sum_j w_j`` of the similarities that are above 0
Way = Literal["softmax", "share"]


def fusion_weights(similarities: Sequence[float | None], way: Way = "share", temperature: float = 1.0) -> Tensor:
    """How much each of several prompts counts: ``[k]`` in fp64, adding up to one.

    Where no similarity is known all count the same. A single prompt counts 1, however near it is.

    Args:
        similarities: one for each prompt, from -1 to 1.
        way: see :data:`Way`; ``share`` gives a prompt of negative similarity no weight.
        temperature: of the softmax: the lower, the more the nearest prompt counts.

    Raises:
        MethodError: there is none, only some have a similarity, one is not finite, the temperature is not above 0, or
            none is above 0 (``share``).
    """
    if not similarities:
        raise MethodError("there is no prompt to fuse", why="A mean needs at least one.")
    known = [value for value in similarities if value is not None]
    if known and len(known) < len(similarities):
        raise MethodError(
            f"{len(known)} of {len(similarities)} prompts have a similarity",
            why="Those without one cannot be weighed against the others.",
            fix="similarity for every prompt, or for none",
        )
    if not known or len(similarities) == 1:
        return torch.full((len(similarities),), 1 / len(similarities), dtype=torch.float64)
    if not all(map(math.isfinite, known)) or not temperature > 0:
        raise MethodError(f"similarities {known}, temperature {temperature}", why="No weights follow from these.")
    values = torch.tensor(known, dtype=torch.float64)
    if way == "softmax":
        return torch.softmax(values / temperature, dim=0)
    positive = values.clamp(min=0)
    if not positive.any():
        raise MethodError(
            f"no prompt is similar to the task: {known}",
            why="A share of nothing cannot be given out.",
            fix="other prompts, or weights from a softmax",
        )
    return positive / positive.sum()


def early_fusion(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_k a_k P_k`` of prompts ``[n, w]``; computed in fp64, given back in the dtype of the first.

    One prompt with weight 1 is given back bit for bit.

    Raises:
        MethodError: the prompts differ in length or width.
    """
    shapes = {tuple(one.shape) for one in values}
    if len(shapes) != 1:
        raise MethodError(
            f"prompts of the shapes {sorted(shapes)} cannot be fused",
            why="A mean is taken place by place.",
            fix="prompts of one length and kind",
        )
    return _mean(values, weights)


def late_fusion(answers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_k a_k z_k`` of what several teachers answer, each ``[items, outputs]``; as ``early_fusion``.

    Raises:
        MethodError: the answers differ in shape.
    """
    shapes = {tuple(one.shape) for one in answers}
    if len(shapes) != 1:
        raise MethodError(
            f"teachers' answers of the shapes {sorted(shapes)} cannot be fused",
            why="They must answer the same items with the same outputs.",
        )
    return _mean(answers, weights)


def _mean(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    total = torch.zeros_like(parts[0], dtype=torch.float64)
    for one, weight in zip(parts, weights.tolist(), strict=True):
        total += weight * one.double()
    return total.to(parts[0].dtype)
