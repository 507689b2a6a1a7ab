"""Exact differences of tensors: pure functions.

``base + (tuned - base)`` in fp32 is not ``tuned``: each of the two operations rounds. Here the difference is taken in
fp64 and rounded once (to fp32; fp64 weights keep fp64), the sum is taken in fp64 and rounded once, and the few entries
that still come out otherwise are listed with their exact value (a correction). A correction says what the tuned value
was, so it is only right on the very base the difference was taken from.

Two rules keep what was not tuned: where the difference is zero the base's bits stay (-0.0 included), and bits, not
values, decide whether an entry came out right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Entries handled at a time: bounds the fp64 copies to some hundred megabytes whatever the size of a tensor.
CHUNK = 1 << 24
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Difference:
    """What was added to a tensor: ``values`` (its shape), and exact values at flat ``index`` where the sum is off."""

    values: Tensor
    index: Tensor
    exact: Tensor


def same_bits(left: Tensor, right: Tensor) -> Tensor:
    """Entry by entry, whether two tensors of one dtype hold the same bits (NaN equals NaN, -0.0 differs from 0.0)."""
    bits = _BITS[left.element_size()]
    return left.contiguous().view(bits) == right.contiguous().view(bits)


def subtract(base: Tensor, tuned: Tensor) -> Difference | None:
    """What tuning added to a tensor, or None where not a bit changed.

    Args:
        base: any shape, floating point, finite.
        tuned: the same shape; its dtype is the one to come back to.

    Returns:
        ``values`` in fp32, or in fp64 for fp64 weights and for differences beyond fp32's range.
    """
    start = base.to(tuned.dtype)
    if bool(same_bits(start, tuned).all()):
        return None
    wide = tuned.dtype == torch.float64
    values = torch.empty(tuned.shape, dtype=torch.float64 if wide else torch.float32)
    for piece, before, after in _chunks(values, base, tuned):
        piece.copy_(after.double() - before.double())
    if not bool(values.isfinite().all()):
        values = tuned.double() - base.double()
    index = (~same_bits(add(base, values, tuned.dtype), tuned)).reshape(-1).nonzero().reshape(-1)
    exact = tuned.reshape(-1)[index].clone()
    return Difference(values, index.to(torch.int32 if tuned.numel() < 2**31 else torch.int64), exact)


def add(base: Tensor, values: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """``base + scale * values``, summed in fp64 and rounded once to ``dtype``; the base's bits where nothing is added.

    Shapes of ``base`` and ``values`` are equal. Returns a new tensor.
    """
    result = base.to(dtype, copy=True).contiguous()
    if scale == 0.0:
        return result
    for piece, before, change in _chunks(result, base, values):
        moved = change.double() * scale
        piece.copy_(torch.where(moved == 0, piece, (before.double() + moved).to(dtype)))
    return result


def put(tensor: Tensor, index: Tensor, exact: Tensor) -> Tensor:
    """Write exact values at flat indices, in place; returns the tensor (contiguous)."""
    tensor.view(-1)[index.long()] = exact.to(tensor.dtype)
    return tensor


def changed_rows(values: Tensor) -> Tensor | None:
    """Indices (int64) of the rows that hold a change, if they are at most half of the rows; else None.

    Embedding tables: most words never occurred while tuning, so most rows did not move.
    """
    if values.dim() < 2 or values.shape[0] < 2:
        return None
    rows = (values != 0).flatten(1).any(dim=1).nonzero().reshape(-1)
    return rows if 2 * len(rows) <= values.shape[0] else None


def from_rows(rows: Tensor, values: Tensor, length: int) -> Tensor:
    """The full tensor [length, ...] of ``values`` [n, ...] at ``rows`` [n]; zero elsewhere."""
    full = torch.zeros((length, *values.shape[1:]), dtype=values.dtype)
    full[rows.long()] = values
    return full


def changed_entries(values: Tensor) -> Tensor:
    """Flat indices (int64) of the entries that hold a change, a change of nothing but a zero's sign included."""
    bits = values.contiguous().view(_BITS[values.element_size()])
    return bits.reshape(-1).nonzero().reshape(-1)


def from_entries(index: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """The full tensor of ``values`` [n] at flat ``index`` [n]; zero elsewhere."""
    full = torch.zeros(shape, dtype=values.dtype)
    full.view(-1)[index.long()] = values
    return full


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Flat pieces of equal length of tensors of one shape; the first tensor's pieces are views of it."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    return list(zip(*(tensor.split(CHUNK) for tensor in flat), strict=True))
