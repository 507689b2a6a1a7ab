"""Distillation losses as pure functions: what a student loses by answering differently from its teacher.

Shared by the methods that learn from another model's outputs. Formulas: Hinton et al. 2015 for the logits, patient
knowledge distillation (Sun et al. 2019) for hidden states, as the code of Recyclable Tuning (2023) uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
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
    scaled, target = upcast(student) / temperature, upcast(teacher.detach()) / temperature
    of_student, of_teacher = functional.softmax(scaled.detach(), dim=-1), functional.softmax(target, dim=-1)
    log_ratio = functional.log_softmax(target, dim=-1) - functional.log_softmax(scaled.detach(), dim=-1)
    divergence = (of_teacher * log_ratio).sum(dim=-1)
    # dKL/d(scaled) = softmax(student) - softmax(teacher), put in by hand: equal logits then give a gradient of exactly
    # zero, which autograd's own sum over log_softmax misses by rounding.
    pull = ((of_student - of_teacher) * (scaled - scaled.detach())).sum(dim=-1)
    per_example = temperature**2 * (divergence + pull)
    return per_example.mean() if reduction == "batch" else per_example.mean() / student.shape[-1]


def patience(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """``0.5 * mean((H_student - H_teacher)^2)`` over layers, examples and width; a scalar.

    Args:
        student: one vector per example for each matched layer, each ``[b, width]``, with gradient.
        teacher: the same, without.

    Raises:
        MethodError: the layers do not match.
    """
    if len(student) != len(teacher) or not student:
        raise MethodError(
            f"{len(student)} student layers and {len(teacher)} teacher layers",
            why="Each layer is held against its own.",
            fix="a layer map of equal lengths",
        )
    total = student[0].new_zeros(())
    for mine, other in zip(student, teacher, strict=True):
        if mine.shape != other.shape:
            raise MethodError(
                f"hidden states {list(mine.shape)} against {list(other.shape)}",
                why="Without a projection, widths must agree.",
            )
        total = total + functional.mse_loss(upcast(mine), upcast(other.detach()))
    return 0.5 * total / len(student)
