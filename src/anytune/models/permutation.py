"""Permutations that leave a transformer as it is: of feed-forward neurons, of attention heads, and inside heads.

A base and its upgrade may hold the same neuron at different places. A difference that was learned for one order is
then added to the wrong neurons, unless it is brought into the other's order first. Here: which tensors' entries
belong to which units (``symmetries``), and tensors in another order (``permute``, and ``permute_adapter`` for a LoRA's
factors). Which order fits is found in ``matching``.

The hidden states between blocks keep their order: they run through all blocks, and continued pre-training does not
turn them. Heads stay at their place in kinds whose blocks share a table of position biases by head (T5); inside heads
queries and keys stay in order in kinds that turn them by position (rotary kinds).

An order is an int64 tensor: entry i of the new order is what stood at ``order[i]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from anytune.errors import DeltaError
from anytune.models.anatomy import Anatomy

Role = Literal["query", "key", "value", "out", "up", "down"]
#: role -> order of its entries
Orders = dict[str, dict[str, Tensor]]

#: The last parts of the names of a block's linear maps, by what they do.
_ATTENTION: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(("query", "q_lin", "query_proj", "q_proj", "q", "pos_query_proj"), ("query",)),
    **dict.fromkeys(("key", "k_lin", "key_proj", "k_proj", "k", "pos_key_proj"), ("key",)),
    **dict.fromkeys(("value", "v_lin", "value_proj", "v_proj", "v"), ("value",)),
    **dict.fromkeys(("dense", "out_lin", "Wo", "c_proj", "o_proj", "o"), ("out",)),
    **dict.fromkeys(("Wqkv", "c_attn"), ("query", "key", "value")),
}
_FEED_FORWARD: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(("c_fc", "gate_proj", "up_proj", "lin1", "wi", "wi_0", "wi_1"), ("up",)),
    **dict.fromkeys(("lin2", "Wo", "c_proj", "down_proj", "wo"), ("down",)),
    "Wi": ("up", "up"),  # gate and value, one above the other
}
_READS: tuple[Role, ...] = ("out", "down")


@dataclass(frozen=True)
class Member:
    """Entries of one tensor that belong to units: a stretch along one dimension.

    Attributes:
        name: canonical name of the tensor.
        role: what the map does; "out" and "down" read the units, the others make them.
        dim: the dimension along which the units lie.
        start, length: the stretch; several maps may be one, side by side.
    """

    name: str
    role: Role
    dim: int
    start: int
    length: int

    @property
    def module(self) -> str:
        """Canonical name of the linear map."""
        return self.name.rpartition(".")[0]

    def of(self, tensor: Tensor) -> Tensor:
        """The stretch, units first: ``[length, everything else]`` (a view where it can be)."""
        stretch = tensor.movedim(self.dim, 0).narrow(0, self.start, self.length)
        return stretch.flatten(1) if stretch.ndim > 1 else stretch[:, None]


@dataclass(frozen=True)
class Symmetry:
    """Units of one part of one block that can change places together.

    Attributes:
        key: the part's canonical path.
        kind: "neurons" or "heads".
        count: of neurons, or of heads that keys and values have.
        sharing: how many heads of queries share one of keys (1 but for grouped queries).
        members: the tensors that make or read them.
    """

    key: str
    kind: Literal["neurons", "heads"]
    count: int
    sharing: int
    members: tuple[Member, ...]

    def having(self, role: Role) -> list[Member]:
        """Its members of one role."""
        return [member for member in self.members if member.role == role]


def symmetries(shapes: Mapping[str, Sequence[int]], anatomy: Anatomy, config: Any) -> list[Symmetry]:
    """The units of every block, first block to last: of each attention its heads, and the feed-forward's neurons.

    Args:
        shapes: canonical name -> shape, of a base's tensors.
        anatomy: of its kind.
        config: of the model; heads are counted there.
    """
    found: list[Symmetry] = []
    for stack in anatomy.stacks:
        for block in _blocks(shapes, stack.blocks):
            for part in stack.attention:
                own = _members(shapes, [f"{block}.{part}."], _ATTENTION, anatomy.transposed)
                if own:
                    found.append(_heads(f"{block}.{part}", own, config))
            own = _members(shapes, [f"{block}.{part}." for part in stack.feed_forward], _FEED_FORWARD,
                           anatomy.transposed)  # fmt: skip
            if own:
                found.append(Symmetry(f"{block}.{stack.feed_forward[-1]}", "neurons", own[-1].length, 1, tuple(own)))
    return found


def _blocks(shapes: Iterable[str], path: str) -> list[str]:
    numbers = {int(name.removeprefix(f"{path}.").split(".")[0]) for name in shapes if name.startswith(f"{path}.")}
    return [f"{path}.{number}" for number in sorted(numbers)]


def _members(
    shapes: Mapping[str, Sequence[int]], prefixes: Sequence[str], roles: Mapping[str, tuple[Role, ...]],
    transposed: bool,
) -> list[Member]:  # fmt: skip
    found = []
    for name, shape in shapes.items():
        prefix = next((one for one in prefixes if name.startswith(one)), None)
        module, _, field = name.rpartition(".")
        last = module.rpartition(".")[2]
        if prefix is None or field not in ("weight", "bias") or (field == "weight" and len(shape) != 2):
            continue
        mine: tuple[Role, ...] = roles.get(last, ())
        if roles is _FEED_FORWARD and last == "dense":  # BERT's kinds call up and down by one name, in two places
            mine = ("up",) if "intermediate" in prefix else ("down",)
        for place, role in enumerate(mine):
            reads = role in _READS
            if field == "bias":
                if not reads:  # the bias of a map that reads the units is no unit's
                    found.append(Member(name, role, 0, place * (shape[0] // len(mine)), shape[0] // len(mine)))
                continue
            dim = 1 if reads != transposed else 0
            found.append(Member(name, role, dim, place * (shape[dim] // len(mine)), shape[dim] // len(mine)))
    return sorted(found, key=lambda one: one.role in _READS)


def _heads(key: str, members: list[Member], config: Any) -> Symmetry:
    queries, heads = next(one.length for one in members if one.role == "query"), int(config.num_attention_heads)
    size = queries // heads
    count = next(one.length for one in members if one.role == "key") // size
    return Symmetry(key, "heads", count, heads // count, tuple(members))


# ---------------------------------------------------------------------- in another order


def permute(tensors: Mapping[str, Tensor], units: Sequence[Symmetry], orders: Orders) -> dict[str, Tensor]:
    """Tensors by canonical name with their units in another order; those without units as they are.

    Args:
        tensors: of a base, or of a difference; a name that is missing is passed over.
        units: from ``symmetries``.
        orders: from ``match``; a symmetry without orders stays as it is.
    """
    made = dict(tensors)
    for one in units:
        for member in one.members if one.key in orders else ():
            if member.name in made:
                made[member.name] = _reordered(made[member.name], member, orders[one.key][member.role])
    return made


def permute_adapter(
    tensors: Mapping[str, Tensor], units: Sequence[Symmetry], orders: Orders, anatomy: Anatomy
) -> dict[str, Tensor]:
    """The same for an adapter by PEFT's names: B ``[out, r]`` and A ``[r, in]``, biases and modules kept whole.

    Raises:
        DeltaError: the adapter has factors of some other kind.
    """
    whole: dict[str, list[tuple[Member, Tensor]]] = {}
    out: dict[str, list[tuple[Member, Tensor]]] = {}
    reads: dict[str, list[tuple[Member, Tensor]]] = {}
    for one in units:
        for member in one.members if one.key in orders else ():
            found = member, orders[one.key][member.role]
            whole.setdefault(member.name, []).append(found)
            if member.name.endswith("weight"):
                (reads if member.role in _READS else out).setdefault(member.module, []).append(found)
    made = dict(tensors)
    for name in tensors:
        own = name.removeprefix("base_model.model.")
        module, _, factor = own.removesuffix(".weight").rpartition(".")
        if factor in ("lora_A", "lora_B"):
            sides, dim = (reads, 1) if factor == "lora_A" else (out, 0)
            for member, order in sides.get(anatomy.canonical(module), ()):
                made[name] = _reordered(made[name], Member(name, member.role, dim, member.start, member.length), order)
        elif "lora_" not in name:  # trained beside the factors: bias="all", modules_to_save
            for member, order in whole.get(anatomy.canonical(own), ()):
                made[name] = _reordered(made[name], member, order)
        elif "lora_embedding_" not in name:  # words keep their numbers
            raise DeltaError(
                f"{name}: factors of this kind cannot be brought into another order",
                why="Which of its entries belong to which head or neuron is not known.",
                fix="--method direct, or initialize",
            )
    return made


def moved_share(orders: Orders) -> float:
    """The share of entries that change places, over all orders."""
    all_orders = [order for roles in orders.values() for order in roles.values()]
    moved = sum(int((order != torch.arange(len(order))).sum()) for order in all_orders)
    return moved / max(1, sum(map(len, all_orders)))


def inverse(order: Tensor) -> Tensor:
    """The order that undoes another."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return back


def _reordered(tensor: Tensor, member: Member, order: Tensor) -> Tensor:
    made = tensor.clone()
    stretch = tensor.narrow(member.dim, member.start, member.length)
    made.narrow(member.dim, member.start, member.length).copy_(stretch.index_select(member.dim, order))
    return made
