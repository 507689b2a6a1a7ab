"""Mixing weights with an anchor by whole input columns, and the private draws that such methods make in each step.

What several processes must draw alike, and a resumed run again, comes from generators made for one use: seeded from
the run's seed, the step and the place of the weight. They need no state in a checkpoint and leave torch's global
generators alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anytune.data.splits import stable_seed


def private_generator(seed: int, step: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one draw: of the weight ``index`` in optimizer step ``step`` of a run.

    On another device the same seed draws other numbers.
    """
    return torch.Generator(device).manual_seed(stable_seed("draw", seed, step, index))


def column_mask(seed: int, step: int, index: int, columns: int, p: float) -> Tensor:
    """One draw per input of a linear map: True (the weight is used) with probability ``1 - p``.

    Args:
        seed: the run's.
        step: optimizer steps made before this one.
        index: place of the weight among those that are mixed.
        columns: inputs of the map.
        p: probability of False (the anchor is used), below 1.

    Returns:
        bool [columns], on the CPU.
    """
    return torch.rand(columns, generator=private_generator(seed, step, index)) >= p


def mixed(weight: Tensor, anchor: Tensor, mask: Tensor, p: float) -> Tensor:
    """``anchor + mask * (weight - anchor) / (1 - p)``, in this order of operations; a new tensor.

    Where the mask is 0 it is the anchor; where it is 1 the way from the anchor is stretched, so that over masks drawn
    with probability ``1 - p`` the mean is ``weight``.

    Args:
        weight: any shape.
        anchor: of the same shape.
        mask: 0 and 1 (or bool), of a shape that spreads over ``weight``'s.
        p: below 1.
    """
    return anchor + mask * (weight - anchor) / (1 - p)
