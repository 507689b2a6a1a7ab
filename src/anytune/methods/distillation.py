"""Distillation losses as pure functions: what a student loses by answering differently from its teacher.

Shared by the methods that learn from another model's outputs. Formulas: Hinton et al. 2015 for the logits, patient
knowledge distillation (Sun et al. 2019) for hidden states, as the code of Recyclable Tuning (2023) uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.step import upcast

Reduction = Literal["batch", "element"]


def logit_distillation(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: Reduction = "batch"
) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, a scalar in fp32 or wider.

    Zero, with a gradient of exactly zero, where the two are equal bit for bit. First derivatives only: the gradient is
    written out, so it cannot be differentiated again.

    Args:
        student: logits ``[b, classes]``, with gradient.
        teacher: logits ``[b, classes]``; no gradient flows into it.
        reduction: "batch" is the mean over examples; "element" divides by the classes too, as the published code of
            Recyclable Tuning does (its weight then depends on the number of classes).

    Raises:
        MethodError: shapes differ, or the temperature is not above 0.
    """
    if student.shape != teacher.shape:
        raise MethodError(f"student logits {list(student.shape)}, teacher logits {list(teacher.shape)}")
    if not temperature > 0:
        raise MethodError(f"temperature = {temperature}", why="It must be above 0.", fix="temperature=5")
    per_example = _Divergence.apply(upcast(student), upcast(teacher.detach()), temperature)
    return per_example.mean() if reduction == "batch" else per_example.mean() / student.shape[-1]


class _Divergence(torch.autograd.Function):
    """``T^2 * KL`` of each row; the gradient, ``T * (softmax(student / T) - softmax(teacher / T))``, by hand.

    Both sides are computed alike, so equal logits give a gradient of exactly zero, which autograd's own sum over
    log_softmax misses by rounding. And of all the tensors as wide as a vocabulary only one is kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_student = functional.log_softmax(student / temperature, dim=-1)
        log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
        of_teacher = log_teacher.exp()
        divergence = (of_teacher * (log_teacher - log_student)).sum(dim=-1)
        ctx.save_for_backward(log_student.exp_().sub_(of_teacher))
        ctx.temperature = temperature
        return temperature**2 * divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (apart,) = ctx.saved_tensors
        return apart * (ctx.temperature * gradient).unsqueeze(-1), None, None


def patience(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """``0.5 * mean((H_student - H_teacher)^2)`` over layers, examples and width; a scalar in fp32 or wider.

    Args:
        student: one vector per example for each matched layer, each ``[b, width]``, with gradient.
        teacher: the same, without.
        weights: of each example in the mean, ``[b]``, adding up to one; by default all alike.

    Raises:
        MethodError: the layers do not match.
    """
    if len(student) != len(teacher) or not student:
        raise MethodError(
            f"{len(student)} student layers and {len(teacher)} teacher layers",
            why="Each layer is held against its own.",
            fix="a layer map of equal lengths",
        )
    total = upcast(student[0].new_zeros(()))
    for mine, other in zip(student, teacher, strict=True):
        if mine.shape != other.shape:
            raise MethodError(
                f"hidden states {list(mine.shape)} against {list(other.shape)}",
                why="Without a projection, widths must agree.",
                fix="projection=true, or beta=0   (answers alone)",
            )
        if weights is None:
            total = total + functional.mse_loss(upcast(mine), upcast(other.detach()))
        else:
            apart = (upcast(mine) - upcast(other.detach())).square().mean(dim=-1)
            total = total + (apart * weights.to(apart)).sum()
    return 0.5 * total / len(student)
