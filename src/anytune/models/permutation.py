"""Permutations that leave a transformer as it is: of feed-forward neurons, of attention heads, and inside heads.

A base and its upgrade may hold the same neuron at different places. A difference that was learned for one order is
then added to the wrong neurons, unless it is brought into the other's order first. Here: which tensors' entries
belong to which units (``symmetries``), which order of the old units fits the new ones best (``match``), and tensors
in another order (``permute``, and ``permute_adapter`` for a LoRA's factors).

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
from anytune.models.assignment import assign

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
        # BERT's kinds call the map up and the map down by one name, in two places
        given = (
            (("up",) if "intermediate" in prefix else ("down",)) if roles is _FEED_FORWARD and last == "dense" else ()
        )
        mine = given or roles.get(last, ())
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


# ---------------------------------------------------------------------- which order fits


def match(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], units: Sequence[Symmetry], *, heads: bool = True,
    inside: bool = True, rotary: bool = False, fixed_heads: bool = False,
) -> Orders:  # fmt: skip
    """The order of the old base's units that fits the new base's best, for each symmetry: role -> order.

    Neurons: the one-to-one pairing with the largest sum of inner products over all that a neuron is made and read by.
    Heads: two levels. First heads are paired by the cosine of what they compute, which does not depend on the order
    inside (see ``head_similarity``); then, inside each pair, entries as neurons are.

    Args:
        old: canonical name -> tensor of the old base; only the symmetries' members are read.
        new: the same of the new base, of equal shapes.
        units: from ``symmetries``.
        heads: pair heads; False leaves attention alone.
        inside: also pair the entries inside heads.
        rotary: queries and keys are turned by position, so that their entries keep their order.
        fixed_heads: heads keep their places (the blocks share biases by head).
    """
    found: Orders = {}
    for one in units:
        if one.kind == "neurons":
            order = _fitting(_similarity(old, new, one.members))
            found[one.key] = {"up": order, "down": order}
        elif heads:
            found[one.key] = _match_heads(old, new, one, inside=inside, rotary=rotary, fixed=fixed_heads)
    return found


def _fitting(similarity: Tensor) -> Tensor:
    """The order of old units [n], given ``[old, new]``."""
    return assign(similarity.T)


def _similarity(old: Mapping[str, Tensor], new: Mapping[str, Tensor], members: Sequence[Member]) -> Tensor:
    """Inner products ``[old unit, new unit]`` over all members, in fp32 or wider."""
    total: Tensor | int = 0
    for member in members:
        before, after = (_wide(member.of(side[member.name])) for side in (old, new))
        total = total + before @ after.T
    assert isinstance(total, Tensor)
    return total


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _match_heads(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], one: Symmetry, *, inside: bool, rotary: bool, fixed: bool
) -> dict[str, Tensor]:
    size = one.having("key")[0].length // one.count
    groups, queries = torch.arange(one.count), torch.arange(one.count * one.sharing)
    if not fixed:
        between = head_similarity(circuits(old, one), circuits(new, one))
        groups, queries = grouped(between, one.count, one.count)
    shared, own = _inside_of(groups, size), _inside_of(queries, size)
    orders = {"key": shared, "value": shared, "query": own, "out": own}
    if not inside:
        return orders
    for roles in (("value", "out"),) if rotary else (("query", "key"), ("value", "out")):
        members = [member for member in one.members if member.role in roles]
        for group in range(one.count):
            # one order for all heads that share keys and values: they are read through the same entries
            scores = torch.zeros(size, size, dtype=torch.float64)
            for member in members:
                for place in _of_group(member, group, one, size):
                    before = member.of(old[member.name])[orders[member.role][place]]
                    scores += _wide(before).double() @ _wide(member.of(new[member.name])[place]).double().T
            order = _fitting(scores)
            for role in roles:
                whole = orders[role].clone()
                for place in _of_group(Member("", role, 0, 0, len(whole)), group, one, size):
                    whole[place] = orders[role][place][order]
                orders[role] = whole
    return orders


def _inside_of(heads: Tensor, size: int) -> Tensor:
    """An order of heads as one of their entries."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _of_group(member: Member, group: int, one: Symmetry, size: int) -> list[slice]:
    """Where in a member's entries the heads of a group of keys and values lie."""
    many = member.length // size // one.count
    return [slice(head * size, (head + 1) * size) for head in range(group * many, (group + 1) * many)]


@dataclass(frozen=True)
class Circuits:
    """What each head of queries computes with: maps from the hidden state, biases as one entry more.

    Attributes:
        query, key, value: ``[heads, size, width + 1]``; heads that share keys and values have equal ones.
        out: ``[heads, size, width]``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor

    def through(self, reading: Tensor, writing: Tensor) -> Circuits:
        """The same circuits in another width: ``x_old = reading x_new`` and ``y_new = writing^T y_old``.

        Args:
            reading: ``[old width, new width]``.
            writing: ``[old width, new width]``.
        """

        def read(maps: Tensor) -> Tensor:
            return torch.cat([maps[..., :-1] @ reading, maps[..., -1:]], dim=-1)

        return Circuits(read(self.query), read(self.key), read(self.value), self.out @ writing)


def circuits(tensors: Mapping[str, Tensor], one: Symmetry) -> Circuits:
    """The maps of an attention's heads, in fp64; further maps of a role (DeBERTa's of positions) are left out."""
    size, heads = one.having("key")[0].length // one.count, one.count * one.sharing

    def of(role: Role) -> Tensor:
        weight = next(member for member in one.having(role) if member.name.endswith("weight"))
        maps = weight.of(tensors[weight.name]).double()
        if role != "out":
            bias = next((m for m in one.having(role) if m.name == f"{weight.module}.bias"), None)
            own = bias.of(tensors[bias.name]) if bias is not None else torch.zeros(len(maps), 1)
            maps = torch.cat([maps, own.double()], dim=1)
        split = maps.view(-1, size, maps.shape[1])
        return split.repeat_interleave(heads // len(split), dim=0)

    return Circuits(of("query"), of("key"), of("value"), of("out"))


def head_similarity(old: Circuits, new: Circuits) -> Tensor:
    """Cosine of what two heads compute, ``[old heads, new heads]``: the mean over where they look and what they write.

    Where a head looks is the bilinear form ``query^T key`` over pairs of hidden states, what it writes the map
    ``out value``. Both stay what they are when the entries inside the head are permuted or turned. Neither is made:
    ``<Q^T K, Q'^T K'> = sum((Q Q'^T) * (K K'^T))``, tables of the size of a head.
    """
    looks = _product_cosine(old.query, old.key, new.query, new.key)
    writes = _product_cosine(old.out, old.value, new.out, new.value)
    return (looks + writes) / 2


def _product_cosine(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    def inner(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        left = torch.einsum("hiw,gjw->hgij", a, c)
        return (left * torch.einsum("hiw,gjw->hgij", b, d)).sum(dim=(2, 3))

    own = [torch.stack([inner(x[None], y[None], x[None], y[None])[0, 0] for x, y in zip(p, q, strict=True)])
           for p, q in ((a, b), (c, d))]  # fmt: skip
    return inner(a, b, c, d) / (own[0][:, None] * own[1][None, :]).clamp_min(1e-60).sqrt()


def grouped(similarity: Tensor, old_groups: int, new_groups: int) -> tuple[Tensor, Tensor]:
    """Pair heads where several heads of queries share one of keys: groups first, then the heads in each pair.

    Args:
        similarity: ``[old heads, new heads]`` of queries, the heads of a group side by side.

    Returns:
        (groups int64 [new groups], heads int64 [new heads]): which old one each new one is given, -1 for none.
    """
    old_heads, new_heads = similarity.shape
    before, after = old_heads // old_groups, new_heads // new_groups
    table = similarity.view(old_groups, before, new_groups, after).transpose(1, 2)
    pairs = {(g, h): assign(table[g, h].T) for g in range(old_groups) for h in range(new_groups)}
    sums = torch.tensor(
        [[sum(float(table[g, h, i, j]) for j, i in enumerate(pairs[g, h].tolist()) if i >= 0)
          for h in range(new_groups)] for g in range(old_groups)]
    )  # fmt: skip
    groups = assign(sums.T)
    heads = torch.full((new_heads,), -1)
    for new, old in enumerate(groups.tolist()):
        if old >= 0:
            inner = pairs[old, new]
            heads[new * after : (new + 1) * after] = torch.where(inner >= 0, inner + old * before, -1)
    return groups, heads


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
    """The same for a LoRA's factors by PEFT's names: B ``[out, r]`` and A ``[r, in]``; all else as it is.

    Raises:
        DeltaError: the adapter has factors of some other kind.
    """
    out: dict[str, list[tuple[Member, Tensor]]] = {}
    reads: dict[str, list[tuple[Member, Tensor]]] = {}
    for one in units:
        for member in one.members if one.key in orders else ():
            if member.name.endswith("weight"):
                side = reads if member.role in _READS else out
                side.setdefault(member.module, []).append((member, orders[one.key][member.role]))
    made = dict(tensors)
    for name in tensors:
        module, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if factor not in ("lora_A", "lora_B"):
            if "lora_" in name and "lora_embedding_" not in name:  # words keep their numbers
                raise DeltaError(f"{name}: factors of this kind cannot be brought into another order")
            continue
        sides, dim = (reads, 1) if factor == "lora_A" else (out, 0)
        for member, order in sides.get(anatomy.canonical(module), ()):
            made[name] = _reordered(made[name], Member(name, member.role, dim, member.start, member.length), order)
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
