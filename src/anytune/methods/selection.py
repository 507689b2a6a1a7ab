"""Choose exactly k of many scores: per tensor, over all tensors, and over tensors that are split up over processes.

The k largest scores are chosen; of equal scores the first by index. So the count is exact also for scores with ties,
zeros or one value throughout. Nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Bits of a score looked at in one pass of the radix search.
RADIX_BITS = 8


def share_count(numel: int, keep: float) -> int:
    """``ceil(numel * keep)``, with ``keep`` taken as the decimal it is written as: 30 * 0.1 is 3, not 4."""
    return math.ceil(numel * Fraction(str(keep)))


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of ``scores`` (any shape, no NaN), a scalar tensor; k from 1 to their number.

    On a CPU by numpy's partition, which is 5 to 20 times as fast as a sort.
    """
    flat = scores.detach().reshape(-1)
    if flat.device.type != "cpu" or flat.dtype not in (torch.float32, torch.float64):
        return flat.kthvalue(flat.numel() - k + 1).values
    place = flat.numel() - k
    return torch.as_tensor(np.partition(flat.numpy(), place)[place], dtype=flat.dtype)


def exact_mask(scores: Tensor, k: int) -> Tensor:
    """Boolean mask, of the shape of ``scores``, with exactly ``min(k, numel)`` entries set: the largest scores.

    Args:
        scores: any shape, no NaN.
        k: at least 1.
    """
    if k >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = kth_largest(scores, k)
    if scores.device.type != "cpu":
        return _without_looking(scores, threshold, k)
    mask = scores >= threshold  # looking costs nothing here, and few are tied at the threshold
    surplus = int(mask.count_nonzero()) - k
    if surplus:
        tied = (scores == threshold).reshape(-1).nonzero().reshape(-1)
        mask.view(-1)[tied[len(tied) - surplus :]] = False
    return mask


def _without_looking(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """The same mask by operations whose shapes are known beforehand: a device need not be waited for."""
    above = scores > threshold
    return above | _first(scores == threshold, k - above.count_nonzero())


def _first(mask: Tensor, count: Tensor | int) -> Tensor:
    """The first ``count`` entries that are set, by index."""
    order = mask.reshape(-1).cumsum(0, dtype=torch.int32)
    return mask & (order <= count).view(mask.shape)


def threshold_mask(scores: Tensor, k: int) -> Tensor:
    """All entries at or above the k-th largest score: more than k where scores are tied (published DPS code)."""
    return scores >= kth_largest(scores, min(k, scores.numel()))


def global_masks(scores: Mapping[str, Tensor], k: int, group: Any | None = None) -> dict[str, Tensor]:
    """Masks with exactly ``min(k, total)`` entries set in all: the largest scores of all tensors together.

    Ties go to the tensor that comes first, then to the lower index (over processes: to the lower rank first, which
    is the order of a tensor's rows).

    Args:
        scores: non-negative fp32 or fp64 tensors by name; no NaN.
        k: how many, over all tensors and processes.
        group: the processes that each hold a part of every tensor, or None. All must call this.
    """
    pieces = list(scores.values())
    total = _summed(torch.tensor(sum(piece.numel() for piece in pieces), device=pieces[0].device), group)
    threshold = radix_kth_largest(pieces, torch.minimum(torch.as_tensor(k, device=total.device), total), group)
    above = [piece > threshold for piece in pieces]
    ties = [piece == threshold for piece in pieces]
    counted = _summed(torch.stack([mask.count_nonzero() for mask in above]).sum(), group)
    left = k - counted
    counts = _gathered(torch.stack([mask.count_nonzero() for mask in ties]), group)  # [world, pieces]
    # ties before each piece: all of earlier pieces, and those of lower ranks in the same piece
    before = counts.sum(0).cumsum(0) - counts.sum(0) + counts[: _rank(group)].sum(0)
    return {
        name: chosen | _first(tied, left - before[place])
        for place, (name, chosen, tied) in enumerate(zip(scores, above, ties, strict=True))
    }


def radix_kth_largest(pieces: Sequence[Tensor], k: Tensor | int, group: Any | None = None) -> Tensor:
    """The k-th largest entry of all ``pieces`` together (and of those of the other processes), a scalar tensor.

    Non-negative IEEE numbers are ordered as their bits are. So the answer is found byte by byte from the top: count
    the entries by their next byte among those that agree so far, and go on in the byte that holds the k-th. No sort,
    no copy of all scores, and over processes one sum of 256 numbers for each byte.

    Args:
        pieces: non-negative fp32 or fp64 tensors of one dtype and device; no NaN.
        k: from 1 to the number of entries in all.
        group: the processes that each hold a part, or None.
    """
    dtype, device = pieces[0].dtype, pieces[0].device
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    width = torch.iinfo(whole).bits
    bits = [piece.detach().reshape(-1).view(whole) for piece in pieces]
    left = torch.as_tensor(k, device=device)
    found = torch.zeros((), dtype=whole, device=device)
    for shift in range(width - RADIX_BITS, -1, -RADIX_BITS):
        counts = sum((_histogram(part, found, shift, width) for part in bits), torch.zeros(1, device=device).long())
        from_top = _summed(counts, group).flip(0).cumsum(0)
        place = (from_top < left).sum()
        left = left - torch.where(place > 0, from_top[(place - 1).clamp(min=0)], 0)
        found = found | ((2**RADIX_BITS - 1 - place) << shift).to(whole)
    return found.view(dtype)


def _histogram(bits: Tensor, prefix: Tensor, shift: int, width: int) -> Tensor:
    """How often each next byte occurs among the entries whose higher bits are ``prefix``'s: [256]."""
    digits = (bits >> shift) & (2**RADIX_BITS - 1)
    if shift + RADIX_BITS < width:
        agree = (bits >> (shift + RADIX_BITS)) == (prefix >> (shift + RADIX_BITS))
        # entries that do not agree fall into a bin of their own, which is cut off
        digits = torch.where(agree, digits, 2**RADIX_BITS)
    counts = torch.zeros(2**RADIX_BITS + 1, dtype=torch.int64, device=bits.device)
    if bits.device.type == "cpu":
        counts = torch.bincount(digits, minlength=2**RADIX_BITS + 1)
    else:  # bincount would wait for the device to learn its own size
        counts.scatter_add_(0, digits.long(), torch.ones_like(digits, dtype=torch.int64))
    return counts[:-1]


def _summed(value: Tensor, group: Any | None) -> Tensor:
    if group is None:
        return value
    value = value.clone()
    torch.distributed.all_reduce(value, group=group)
    return value


def _gathered(value: Tensor, group: Any | None) -> Tensor:
    """The values of all processes, by rank: [world, ...]."""
    if group is None:
        return value.unsqueeze(0)
    found = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, value, group=group)
    return torch.stack(found)


def _rank(group: Any | None) -> int:
    return 0 if group is None else torch.distributed.get_rank(group)
