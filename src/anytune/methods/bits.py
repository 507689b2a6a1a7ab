"""Boolean masks in an eighth of their memory: eight entries in a byte."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(mask: Tensor) -> Tensor:
    """A boolean mask of n entries as ``ceil(n / 8)`` bytes; the first entry is the lowest bit of the first byte."""
    flat = mask.reshape(-1)
    spare = -flat.numel() % 8
    eight = torch.nn.functional.pad(flat, (0, spare)).view(-1, 8).to(torch.uint8)
    return (eight << _places(mask)).sum(dim=1, dtype=torch.uint8)


def unpacked(packed_mask: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The mask of :func:`packed`, in the shape it had."""
    eight = (packed_mask.unsqueeze(1) >> _places(packed_mask)) & 1
    return eight.view(-1)[: torch.Size(shape).numel()].view(shape).bool()


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
