"""Heads whose labels stand in another order, are fewer, or whose last layer has another name.

Output i of a head is label i. Where a task names the same labels in another order, the rows of the last layer are put
into that order; where it names some of them, the others are left out. Labels that the head has never seen have no row.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anytune import compat
from anytune.errors import DataError, DeltaError
from anytune.models.adapters import INSIDE, AdapterDelta
from anytune.models.base import Base
from anytune.models.delta import FullDelta
from anytune.models.prompt_files import BEFORE
from anytune.models.soft_prompt_config import is_soft_prompt

#: How many labels a message lists.
LISTED = 4
CLASSES = {"classification": "sequence-classification", "regression": "sequence-classification",
           "token-classification": "token-classification"}  # fmt: skip


def label_order(old: Sequence[str], new: Sequence[str], task: str) -> list[int] | None:
    """Which row of the old head each new label takes, or None where nothing changes.

    Args:
        old: output i of the head is ``old[i]``.
        new: the labels of the task.
        task: its name, for messages.

    Raises:
        DataError: the task has labels that the head has never seen.
    """
    if not new or list(old) == list(new):
        return None
    unknown = [label for label in new if label not in old]
    if unknown:
        raise DataError(
            f"labels differ: the delta has {few(old)}; task '{task}' has {few(new)}, of which {few(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} new",
            why="The head has no output for a label that it has never seen, and output i would be read as another.",
            fix="--task with the same labels or some of them; names that only changed their spelling can be given in "
            "the delta's order with --label-names; for other labels, tune afresh",
        )
    return [list(old).index(label) for label in new]


def output_names(base: Base, kind: str) -> list[str]:
    """State-dict names of the tensors that have a row for each label, in the task models of a base.

    Raises:
        DeltaError: the base has no model for this kind of task.
    """
    few_labels, more_labels = (head_shapes(base, kind, count) for count in (3, 5))
    return [name for name, shape in few_labels.items() if more_labels[name] != shape]


def head_shapes(base: Base, kind: str, labels: int) -> dict[str, tuple[int, ...]]:
    """State-dict name -> shape of all that a task model of a base holds, without making one."""
    purpose = CLASSES.get(kind)
    cls = compat.model_class(purpose, base.config) if purpose else None
    if cls is None:
        raise DeltaError(f"{base.name} has no model for {kind}", why="Only a head has outputs for labels.")
    config: Any = copy.deepcopy(base.config)
    config.num_labels = labels
    with torch.device("meta"), compat.quiet_transformers():
        return {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}


def relabelled(
    delta: FullDelta | AdapterDelta, order: Sequence[int], outputs: Sequence[str]
) -> FullDelta | AdapterDelta:
    """The delta with the rows of its head's last layer in another order.

    Args:
        delta: on the base that it belongs to.
        order: row i of the new head is row ``order[i]`` of the old one (``label_order``).
        outputs: from ``output_names``.

    Raises:
        DeltaError: it holds no such layer.
    """
    if isinstance(delta, FullDelta):
        return replace(delta, head=_reordered(delta.head, order, outputs, ""))
    before = BEFORE if is_soft_prompt(delta.config) else INSIDE
    return AdapterDelta(delta.config, _reordered(delta.tensors, order, outputs, before))


def _reordered(
    tensors: Mapping[str, Tensor], order: Sequence[int], outputs: Sequence[str], before: str
) -> dict[str, Tensor]:
    names = {f"{before}{name}" for name in outputs}
    held = [name for name in tensors if name in names]
    if not held:
        raise DeltaError(
            f"it holds none of {', '.join(outputs)}",
            why="The labels stand in another order, and the head whose rows are to be reordered is not there.",
            fix="--task with the labels in the delta's own order",
        )
    short = [name for name in held if len(tensors[name]) <= max(order)]
    if short:
        raise DeltaError(
            f"{short[0]} has {len(tensors[short[0]])} rows, and the delta names {max(order) + 1} labels or more",
            why="Its manifest and its weights disagree.",
            fix="tune it afresh, or take it from a copy of the store",
        )
    places = torch.tensor(order, dtype=torch.int64)
    return {name: tensor[places].clone() if name in held else tensor for name, tensor in tensors.items()}


def renamed_head(held: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Held name -> wanted name, for a last layer that is called otherwise (``score`` and ``classifier``).

    Args:
        held: name -> shape of the head's tensors that the model does not have.
        wanted: name -> shape of the model's tensors that the head does not have.

    A tensor is taken for the one that ends the same way (``.weight``, ``.bias``) and has the same shape, if there is
    just one such on both sides; otherwise nothing is guessed, and the names are left as they are.
    """

    def key(name: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        return name.rpartition(".")[2], tuple(shape)

    found = {}
    for name, shape in held.items():
        alike = [other for other, size in wanted.items() if key(other, size) == key(name, shape)]
        rivals = [other for other, size in held.items() if key(other, size) == key(name, shape)]
        if len(alike) == len(rivals) == 1:
            found[name] = alike[0]
    return found if len(found) == len(held) else {}


def with_renamed_head(delta: FullDelta | AdapterDelta, names: Mapping[str, str]) -> FullDelta | AdapterDelta:
    """The delta with tensors of its head under other state-dict names (``renamed_head``)."""
    if not names:
        return delta
    if isinstance(delta, FullDelta):
        return replace(delta, head={names.get(name, name): tensor for name, tensor in delta.head.items()})
    before = BEFORE if is_soft_prompt(delta.config) else INSIDE
    full = {f"{before}{old}": f"{before}{new}" for old, new in names.items()}
    modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in names.items()}
    saved = [modules.get(one, one) for one in delta.config.get("modules_to_save") or []]
    tensors = {full.get(name, name): tensor for name, tensor in delta.tensors.items()}
    return AdapterDelta({**delta.config, "modules_to_save": saved or None}, tensors)


def few(names: Sequence[str]) -> str:
    """``3 labels (a, b, c)``."""
    shown = ", ".join(list(names)[:LISTED])
    return f"{len(names)} label{'s' if len(names) != 1 else ''} ({shown}{', ...' if len(names) > LISTED else ''})"
