"""Carry a LoRA's factors into a base of another depth, width or number of heads: pure functions.

Nothing of two bases of different shape can be added entry by entry. What can be said is which words they share, how
their hidden states resemble each other, which heads compute alike: from these come maps between the two, and through
the maps a factor of the old base becomes one of the new.

The way of LoRASuite (2025), in our own form: a map of hidden states from the embeddings of shared words, blocks
aligned by the resemblance (CKA) of what they give, heads paired by what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytune.errors import DeltaError
from anytune.models.assignment import assign
from anytune.models.matching import circuits, grouped, head_similarity
from anytune.models.permutation import Member, Role, Symmetry

#: Added to the diagonal of a least-squares problem, as a share of its mean: nothing where there are words enough.
RIDGE = 1e-8
Neurons = Literal["paired", "mixed"]


def shared_words(old: Mapping[str, int], new: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Numbers of the words that both vocabularies hold, int64 ``[n]`` in the old one and in the new one."""
    both = sorted(old.keys() & new.keys())
    return torch.tensor([old[word] for word in both]), torch.tensor([new[word] for word in both])


def least_squares(source: Tensor, target: Tensor, ridge: float = RIDGE) -> Tensor:
    """The map ``[a, b]`` in fp64 for which ``source @ map`` is nearest to ``target``.

    Args:
        source: ``[n, a]``.
        target: ``[n, b]``.
        ridge: how much small maps are preferred, as a share of the mean squared length of a column of ``source``.

    Raises:
        DeltaError: no rows, or values that are not finite.
    """
    if not len(source) or not (bool(source.isfinite().all()) and bool(target.isfinite().all())):
        raise DeltaError(f"a map from {list(source.shape)} to {list(target.shape)} cannot be fitted",
                         why="It needs rows of finite numbers.")  # fmt: skip
    left, right = source.double(), target.double()
    gram = left.T @ left
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-30))
    return torch.linalg.solve(gram, left.T @ right)


@dataclass(frozen=True)
class HiddenMap:
    """How hidden states of two bases go over into each other, both ``[old width, new width]`` in fp64.

    Attributes:
        reading: ``x_old = reading @ x_new``, for maps that read hidden states.
        writing: ``y_new = writing^T @ y_old``, for maps that write them.
    """

    reading: Tensor
    writing: Tensor


def hidden_map(old: Tensor, new: Tensor) -> HiddenMap:
    """The map of hidden states, from rows that mean the same: the embeddings of shared words.

    Args:
        old: ``[n, old width]``.
        new: ``[n, new width]``, row i for row i.
    """
    return HiddenMap(least_squares(new, old).T, least_squares(old, new))


# ---------------------------------------------------------------------- which block for which


def linear_cka(left: Tensor, right: Tensor) -> float:
    """Linear centred kernel alignment of two sets of rows, from 0 to 1; turns, shifts and lengths do not enter.

    Args:
        left: ``[n, a]``: row i of both was made of the same text.
        right: ``[n, b]``.
    """
    first, second = (side.double() - side.double().mean(dim=0) for side in (left, right))
    across = (first.T @ second).square().sum()
    own = (first.T @ first).norm() * (second.T @ second).norm()
    return float(across / own.clamp_min(1e-300))


def resemblance(old: Sequence[Tensor], new: Sequence[Tensor]) -> Tensor:
    """Linear CKA of every old block's rows with every new block's, ``[old blocks, new blocks]``.

    Args:
        old: what each block gave, ``[n, old width]`` each.
        new: the same of the new base, for the same texts.
    """
    return torch.tensor([[linear_cka(one, other) for other in new] for one in old], dtype=torch.float64)


def align(similarity: Tensor) -> list[int]:
    """For each new block the old block that it is given, -1 for none: in order, none twice, the largest sum.

    With as many blocks on both sides that is block i for block i, whatever their similarity; otherwise all blocks of
    the shorter side find a partner (dynamic programming over ``[old, new]`` prefixes).

    Args:
        similarity: ``[old blocks, new blocks]``.
    """
    rows, columns = similarity.shape
    table = similarity.double().tolist()
    worst = float("-inf")
    pairs = min(rows, columns)
    # best[k][i][j]: the largest sum of k pairs among the first i old and j new blocks
    best = [[[worst] * (columns + 1) for _ in range(rows + 1)] for _ in range(pairs + 1)]
    best[0] = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for k in range(1, pairs + 1):
        for i in range(k, rows + 1):
            for j in range(k, columns + 1):
                paired = best[k - 1][i - 1][j - 1] + table[i - 1][j - 1]
                best[k][i][j] = max(paired, best[k][i - 1][j], best[k][i][j - 1])
    found, i, j, k = [-1] * columns, rows, columns, pairs
    while k:
        if best[k][i][j] == best[k - 1][i - 1][j - 1] + table[i - 1][j - 1]:
            found[j - 1], i, j, k = i - 1, i - 1, j - 1, k - 1
        elif best[k][i][j] == best[k][i - 1][j]:
            i -= 1
        else:
            j -= 1
    return found


# ---------------------------------------------------------------------- inside a block


@dataclass(frozen=True)
class UnitMap:
    """How the units of one part go over, by role: makers of units give ``new = map @ old``, readers the other way.

    ``maps[role]`` is ``[new entries, old entries]`` for makers (query, key, value, up): ``u_new = map @ u_old``; and
    ``[old entries, new entries]`` for readers (out, down): ``u_old = map @ u_new``.
    """

    maps: dict[Role, Tensor]


def map_heads(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], before: Symmetry, after: Symmetry, hidden: HiddenMap
) -> UnitMap:
    """The entries of attention heads: heads paired by what they compute, a least-squares map inside each pair.

    A new head without a partner gets zeros.
    """
    carried, own = circuits(old, before).through(hidden.reading, hidden.writing), circuits(new, after)
    groups, heads = grouped(head_similarity(carried, own), before.count, after.count)
    size, fitted = own.query.shape[1], carried.query.shape[1]
    made: dict[Role, Tensor] = {}
    # heads that share keys and values have equal ones: each group's stand once
    shared_old, shared_new = slice(None, None, before.sharing), slice(None, None, after.sharing)
    makers: tuple[tuple[Role, Tensor, Tensor, Tensor], ...] = (
        ("query", heads, carried.query, own.query),
        ("key", groups, carried.key[shared_old], own.key[shared_new]),
        ("value", groups, carried.value[shared_old], own.value[shared_new]),
    )
    for role, pairs, theirs, mine in makers:
        whole = torch.zeros(len(mine) * size, len(theirs) * fitted, dtype=torch.float64)
        for to, source in enumerate(pairs.tolist()):
            if source >= 0:
                block = least_squares(theirs[source].T, mine[to].T).T
                whole[to * size : (to + 1) * size, source * fitted : (source + 1) * fitted] = block
        made[role] = whole
    whole = torch.zeros(len(carried.query) * fitted, len(own.query) * size, dtype=torch.float64)
    for to, source in enumerate(heads.tolist()):
        if source >= 0:
            block = least_squares(own.value[to].T, carried.value[source].T).T
            whole[source * fitted : (source + 1) * fitted, to * size : (to + 1) * size] = block
    return UnitMap({**made, "out": whole})


def map_neurons(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], before: Symmetry, after: Symmetry, hidden: HiddenMap,
    way: Neurons = "paired",
) -> UnitMap:  # fmt: skip
    """The neurons of a feed-forward part.

    Args:
        way: "paired" gives each new neuron at most one old one (a neuron's non-linearity acts on it alone; the time
            grows with the cube of their number), "mixed" a least-squares map over what makes them.
    """
    mine = torch.cat([member.of(new[member.name]).double() for member in _matrices(after, "up")], dim=1)
    theirs = torch.cat(
        [member.of(old[member.name]).double() @ hidden.reading for member in _matrices(before, "up")], dim=1
    )
    if way == "mixed":
        return UnitMap({"up": least_squares(theirs.T, mine.T).T, "down": least_squares(mine.T, theirs.T).T})
    [reads_new], [reads_old] = _matrices(after, "down"), _matrices(before, "down")
    mine = torch.cat([mine, reads_new.of(new[reads_new.name]).double()], dim=1)
    theirs = torch.cat([theirs, reads_old.of(old[reads_old.name]).double() @ hidden.writing], dim=1)
    order = assign(functional.normalize(mine, dim=1) @ functional.normalize(theirs, dim=1).T)
    pairs = torch.zeros(len(mine), len(theirs), dtype=torch.float64)
    there = (order >= 0).nonzero().flatten()
    pairs[there, order[there]] = 1.0
    return UnitMap({"up": pairs, "down": pairs.T})


def _matrices(one: Symmetry, role: Role) -> list[Member]:
    return [member for member in one.having(role) if member.name.endswith("weight")]


# ---------------------------------------------------------------------- factors


@dataclass(frozen=True)
class Factors:
    """A LoRA's difference ``b @ a`` of one linear map: ``a [r, in]``, ``b [out, r]``."""

    a: Tensor
    b: Tensor


def carry(
    factors: Factors, module_old: Sequence[Member], module_new: Sequence[Member], units: UnitMap, hidden: HiddenMap,
    outs: int,
) -> Factors:  # fmt: skip
    """A map's factors in the new base.

    A map that makes units reads hidden states (``a @ reading``) and writes units (``map @ b``); one that reads units
    the other way round (``a @ map``, ``writing^T @ b``). In fp64, rounded once to the factors' dtype.

    Args:
        factors: of the old base.
        module_old: the units' members that are this map's weight in the old base; several where maps are one.
        module_new: the same in the new base, in the same order.
        units: from ``map_heads`` or ``map_neurons``.
        hidden: from ``hidden_map``.
        outs: outputs of the map in the new base.
    """
    a, b = factors.a.double(), factors.b.double()
    first = module_old[0]
    if first.role in ("out", "down"):
        made = Factors(a @ units.maps[first.role], hidden.writing.T @ b)
    else:
        whole = b.new_zeros(outs, b.shape[1])
        for old, new in zip(module_old, module_new, strict=True):
            stretch = b[old.start : old.start + old.length]
            whole[new.start : new.start + new.length] = units.maps[old.role] @ stretch
        made = Factors(a @ hidden.reading, whole)
    return Factors(made.a.to(factors.a.dtype), made.b.to(factors.b.dtype))


def map_lora(
    factors: Mapping[str, Factors], old: Mapping[str, Tensor], new: Mapping[str, Tensor],
    units_old: Sequence[Symmetry], units_new: Sequence[Symmetry], blocks: str, pairs: Sequence[int],
    hidden: HiddenMap, neurons: Neurons = "paired",
) -> dict[str, Factors]:  # fmt: skip
    """A LoRA of one base as one of another: module -> factors, of the new blocks that have a partner.

    Args:
        factors: canonical module name in the old base -> its factors; others than maps of blocks are passed over.
        old: canonical name -> tensor of the old base.
        new: the same of the new base.
        units_old, units_new: their ``permutation.symmetries``.
        blocks: path of the list of blocks.
        pairs: for each new block its old one, -1 for none; from ``align``.
        hidden: from ``hidden_map``.
        neurons: see ``map_neurons``.
    """
    by_key = {one.key: one for one in units_old}
    found: dict[str, Factors] = {}
    for after in units_new:
        number, _, part = after.key.removeprefix(f"{blocks}.").partition(".")
        source = pairs[int(number)]
        before = by_key.get(f"{blocks}.{source}.{part}")
        there, here = f"{blocks}.{source}.", f"{blocks}.{number}."
        modules = dict.fromkeys(member.module for member in after.members if member.name.endswith("weight"))
        names = {module: there + module.removeprefix(here) for module in modules}
        if before is None or factors.keys().isdisjoint(names.values()):
            continue
        if after.kind == "heads":
            units = map_heads(old, new, before, after, hidden)
        else:
            units = map_neurons(old, new, before, after, hidden, neurons)
        for module, source_name in names.items():
            if source_name in factors:
                mine = [member for member in after.members if member.name == f"{module}.weight"]
                theirs = [member for member in before.members if member.name == f"{source_name}.weight"]
                outs = new[f"{module}.weight"].shape[mine[0].dim]
                found[module] = carry(factors[source_name], theirs, mine, units, hidden, outs)
    return found
