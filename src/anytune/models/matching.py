"""Which order of one base's heads and neurons fits another's best, and how alike two heads are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytune.models.assignment import assign
from anytune.models.permutation import Member, Orders, Role, Symmetry


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
