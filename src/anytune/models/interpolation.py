"""Points on the straight line between two models: ``(1 - x) A + x B``.

Two tuned models are linearly connected when every point between them still does the task well. The line is the
cheapest look at that (Frankle et al. 2020; Qin, Qian et al. 2023 for bases before and after continual pre-training).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from anytune.errors import DeltaError

#: The published grid: x = 0, 0.04, ..., 1, both ends included (Recyclable Tuning, section 3.1 of its code).
POINTS = 26


def grid(points: int = POINTS) -> list[float]:
    """``points`` evenly spaced values from 0 to 1, symmetric bit for bit: ``grid[i] == 1 - grid[-1 - i]`` to an ulp.

    Raises:
        DeltaError: fewer than two points.
    """
    if points < 2:
        raise DeltaError(f"a path of {points} points", why="It needs both ends.", fix=f"points={POINTS}")
    return [index / (points - 1) for index in range(points)]


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], x: float) -> dict[str, Tensor]:
    """The state dict at ``x``: ``(1 - x) * first + x * second``, in fp64 and rounded once.

    At 0 and 1 the ends' own bits are returned, -0.0 and integer entries included. Integer and boolean entries
    (position ids, counters) are never mixed: they must be equal, or x must be an end.

    Raises:
        DeltaError: the names, shapes or dtypes differ, or integer entries differ between the ends.
    """
    if not 0.0 <= x <= 1.0:
        raise DeltaError(f"x = {x}", why="A point between two models has x from 0 to 1.")
    check_ends(first, second)
    if x in (0, 1):
        return {name: tensor.clone() for name, tensor in (second if x else first).items()}
    mixed = {}
    for name, left in first.items():
        right = second[name]
        if left.is_floating_point():
            point = (1.0 - x) * left.double() + x * right.double()
            # where both ends hold the same bits, so does every point between them
            mixed[name] = torch.where(left == right, left, point.to(left.dtype))
        else:
            if not torch.equal(left, right):
                raise DeltaError(
                    f"{name} holds {str(left.dtype).removeprefix('torch.')} values that differ between the two models",
                    why="Whole numbers cannot be interpolated.",
                )
            mixed[name] = left.clone()
    return mixed


def barrier(losses: Sequence[float]) -> float:
    """How far the path rises above the straight line between its ends' losses: 0 for a flat or sagging path.

    ``max over i of loss_i - ((1 - x_i) loss_0 + x_i loss_1)``, at least 0 (the ends themselves). Where an end has no
    finite loss, or a point between them none at all, nothing is known of it: NaN. An infinite loss between finite ends
    is an infinite barrier.
    """
    if len(losses) < 2:
        raise DeltaError(f"a path of {len(losses)} losses", why="It needs both ends.")
    first, last = losses[0], losses[-1]
    if not (math.isfinite(first) and math.isfinite(last)) or any(math.isnan(loss) for loss in losses):
        return math.nan
    rises = [loss - (first + x * (last - first)) for x, loss in zip(grid(len(losses)), losses, strict=True)]
    return max(0.0, *rises[1:-1]) if len(losses) > 2 else 0.0


def check_ends(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Two state dicts must have the same names, shapes and dtypes.

    Raises:
        DeltaError: they have not; the first names that differ are listed with their reasons.
    """
    reasons = [f"{name}: in one model only" for name in sorted(first.keys() ^ second.keys())]
    reasons += [
        f"{name}: {list(first[name].shape)} {first[name].dtype} and {list(second[name].shape)} {second[name].dtype}"
        for name in first.keys() & second.keys()
        if first[name].shape != second[name].shape or first[name].dtype != second[name].dtype
    ]
    if reasons:
        raise DeltaError(
            f"the two models do not match, {len(reasons)} names: {'; '.join(reasons[:5])}",
            why="A line needs the same tensors at both ends.",
        )
