"""The part of a tensor that one process holds where weights are split up over several (``sharding: fsdp``).

Methods that work entry by entry need no more than this: the same arithmetic on the part at hand. Without sharding a
tensor is its own part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_part(tensor: Any) -> bool:
    """Whether a tensor is split up over processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A plain tensor: every process that calls this with its part gets the whole."""
    found: Tensor = tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return found


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a plain tensor is its own."""
    part: Tensor = tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return part


def part_of(whole: Tensor, parameter: Any) -> Tensor:
    """The part of ``whole`` that goes with ``parameter``'s, on its device; every process holds the whole.

    Args:
        whole: of the shape of the whole parameter.
        parameter: a weight, split up or not.
    """
    moved = whole.to(parameter.device)
    if not is_part(parameter):
        return moved
    from torch.distributed.tensor import distribute_tensor

    split = distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return split.to_local()


def group_of(parameter: Any) -> Any | None:
    """The process group over which a weight is split up, or None."""
    return parameter.device_mesh.get_group() if is_part(parameter) else None
