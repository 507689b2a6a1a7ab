"""Whether what was tuned on one base can be put onto another as it is, and if not, every reason why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from anytune.errors import DeltaError
from anytune.models.base import Base
from anytune.models.layout import is_hyperprompt
from anytune.models.vocabulary import Rows

#: How many reasons a message lists.
LISTED = 6
#: Settings of a base that say what its weights mean, in words, by all their names; whatever the shapes say, weights
#: tuned under one value compute something else under another.
MEANINGS = {
    "depth": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "depth of the decoder": ("num_decoder_layers",),
    "width": ("hidden_size", "dim", "n_embd", "d_model"),
    "width of the embeddings": ("embedding_size",),
    "attention heads": ("num_attention_heads", "n_heads", "n_head", "num_heads"),
    "key-value heads": ("num_key_value_heads",),
    "width of a head": ("head_dim", "d_kv"),
    "activation": ("hidden_act", "activation", "activation_function", "hidden_activation", "feed_forward_proj"),
    "kind of positions": ("position_embedding_type", "relative_attention", "pos_att_type", "position_biased_input"),
    "direction": ("is_decoder",),
}


def reasons_against(
    old: Base, new: Base, tables: Mapping[str, Rows], touched: Collection[str] | None = None
) -> list[str]:
    """Why weights tuned on ``old`` cannot be copied onto ``new``: one line for each setting and each tensor.

    Args:
        old: the base they belong to.
        new: the base they are to go to.
        tables: canonical names of tables whose rows are known to move (``vocabulary.changed_tables``).
        touched: canonical names of the tensors that the weights are about; None for all of the body.
    """
    if old.anatomy.model_type != new.anatomy.model_type:
        return [f"{old.name} is of kind {old.anatomy.model_type}, {new.name} of kind {new.anatomy.model_type}"]
    reasons = []
    for meaning, keys in MEANINGS.items():
        before, after = _setting(old.config, keys), _setting(new.config, keys)
        if before != after:
            reasons.append(f"{meaning}: {before} became {after}")
    first, second = old.tensors(), new.tensors()

    def matters(name: str) -> bool:
        optional = is_hyperprompt(name) or new.anatomy.may_be_left_out(name)
        return not optional if touched is None else name in touched

    reasons += [f"{name}: {new.name} has none" for name in first if name not in second and matters(name)]
    if touched is None:
        reasons += [f"{name}: {old.name} has none" for name in second if name not in first and matters(name)]
    for name in first:
        if name in second and matters(name):
            cut = 1 if name in tables else 0
            if first.shape(name)[cut:] != second.shape(name)[cut:]:
                reasons.append(f"{name}: {list(first.shape(name))} became {list(second.shape(name))}")
    return reasons


def refuse(old: Base, new: Base, reasons: list[str]) -> None:
    """Raise what ``reasons_against`` found, if anything.

    Raises:
        DeltaError: the number of reasons, and the first of them.
    """
    if reasons:
        more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        raise DeltaError(
            f"{new.name} has another shape than {old.name}, {len(reasons)} reasons: "
            f"{'; '.join(reasons[:LISTED])}{more}",
            why="A difference can only be added to a tensor of the same name, shape and meaning.",
        )


def _setting(config: Any, keys: Collection[str]) -> Any:
    for key in keys:
        value = getattr(config, key, None)
        if value is not None:
            return list(value) if isinstance(value, tuple) else value
    return None
