"""What becomes of the tensors of an adapter when its base is upgraded: pure functions.

LoRA's matrices mean a difference and are carried as they are, along with their words where they act on a table of
words. What is an absolute value of the old base (a copied module, a trained token, a magnitude) becomes a difference,
or a ratio, and then a value of the new base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anytune.errors import DeltaError
from anytune.models import difference as arithmetic
from anytune.models.anatomy import Anatomy
from anytune.models.vocabulary import Rows

#: Tensors of an adapter on a table of words that have a row, or a column, for each word: name part -> dimension.
PER_WORD = {"lora_embedding_A": 1}
#: The same on a vocabulary head, a linear map to words.
PER_WORD_OUT = {"lora_B": 0}


def move_copy(copy: Tensor, old: Tensor, new: Tensor, rows: Rows | None = None) -> Tensor:
    """``new + (copy - old)`` in fp64, rounded once to the copy's dtype; the copy's bits where old and new agree.

    Args:
        copy: an absolute value, trained from ``old``.
        old: of the old base, in the copy's shape.
        new: of the new base.
        rows: where the rows went, if they moved; rows without a predecessor are the new base's.
    """
    step, start, end = copy.double() - old.double(), old.to(copy.dtype), new.to(copy.dtype)
    if rows is None:
        return torch.where(arithmetic.same_bits(start, end), copy, arithmetic.add(new, step, copy.dtype))
    moved = arithmetic.add(new, rows.carry(step), copy.dtype)
    return torch.where(arithmetic.same_bits(rows.carry(start), end), rows.carry(copy), moved)


def rescaled(magnitude: Tensor, old: Tensor, new: Tensor, transposed: bool = False) -> Tensor:
    """DoRA's magnitudes [out] for another matrix: each keeps its ratio to the length of the matrix's row.

    Args:
        magnitude: one for each output.
        old: the matrix it was trained on, [out, in], or [in, out] where ``transposed``.
        new: the matrix it goes to.

    Where both rows are of the same length the magnitude's bits stay; a row of zeros has no length to compare with.
    """
    axis = 0 if transposed else 1
    before, after = (torch.linalg.vector_norm(matrix.double(), dim=axis) for matrix in (old, new))
    ratio = torch.where(before > 0, after / before, torch.ones_like(before))
    return torch.where(ratio == 1, magnitude, (magnitude.double() * ratio).to(magnitude.dtype))


def carried(name: str, module: str, tensor: Tensor, tables: Mapping[str, Rows]) -> Tensor:
    """An adapter's own tensor on a base whose tables changed: with its words, or as it is.

    Args:
        name: of the tensor, as PEFT stores it.
        module: canonical name of the module it acts on.
        tensor: its values.
        tables: canonical name -> what became of the rows (``vocabulary.changed_tables``).

    Raises:
        DeltaError: it acts on a table of words in a way that is not known to go word by word.
    """
    rows = tables.get(f"{module}.weight")
    if rows is None:
        return tensor
    parts = name.split(".")
    embeds = any(part.startswith("lora_embedding") for part in parts)
    for part, dim in (PER_WORD if embeds else PER_WORD_OUT).items():
        if part in parts:
            return rows.carry(tensor, dim)
    if any(part in ("lora_embedding_B", "lora_A") for part in parts):
        return tensor  # the side of the product that knows no words
    raise DeltaError(
        f"{name}: it acts on {module}, whose rows are others in the new base",
        why="Which part of it belongs to which word is not known.",
    )


def moved_tokens(
    values: Tensor, indices: Sequence[int], old: Tensor, new: Tensor, rows: Rows | None
) -> tuple[Tensor, list[int]]:
    """Trained token embeddings on another base: (values, numbers of the tokens there).

    Args:
        values: [n, width], absolute.
        indices: numbers of the n tokens on the old base.
        old: the old base's table of words.
        new: the new base's.
        rows: where the rows went, if they moved; tokens that are gone are left out.
    """
    places = list(indices)
    if rows is None:
        return move_copy(values, old[places], new[places]), places
    went = dict(zip(rows.source.tolist(), rows.target.tolist(), strict=True))
    kept = [number for number, token in enumerate(places) if token in went]
    there = [went[places[number]] for number in kept]
    return move_copy(values[kept], old[[places[number] for number in kept]], new[there]), there


def move_tokens(
    name: str,
    module: str,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    old_base: Mapping[str, Tensor],
    new_base: Mapping[str, Tensor],
    tables: Mapping[str, Rows],
) -> None:
    """Move the trained tokens of one table, in ``tensors`` and ``config``; tokens that are gone leave both.

    Raises:
        DeltaError: the config does not say which tokens they are.
    """
    table, stated = f"{module}.weight", config.get("trainable_token_indices")
    key = next((key for key in stated if f".{module}".endswith(f".{key}")), None) if isinstance(stated, dict) else None
    indices: Any = stated[key] if isinstance(stated, dict) and key is not None else stated
    fitting = isinstance(indices, list) and all(type(index) is int for index in indices) and table in old_base
    if not fitting or table not in new_base or len(indices) != len(tensors[name]):
        raise DeltaError(
            f"{name}: its config names tokens {str(stated)[:60]} for {len(tensors[name])} rows of {table}",
            why="Whose embeddings these are is not known.",
        )
    if not all(0 <= index < len(old_base[table]) for index in indices):
        raise DeltaError(
            f"{name}: a token beyond the {len(old_base[table])} of its base", why="The config is damaged."
        )
    values, there = moved_tokens(tensors[name], indices, old_base[table], new_base[table], tables.get(table))
    left: Any = {**stated, key: there} if isinstance(stated, dict) else there
    if there:
        tensors[name] = values
    else:
        del tensors[name]
        left = {other: kept for other, kept in left.items() if kept} if isinstance(left, dict) else None
    config["trainable_token_indices"] = left or None


def moved_magnitude(
    name: str,
    module: str,
    magnitude: Tensor,
    old_base: Mapping[str, Tensor],
    new_base: Mapping[str, Tensor],
    anatomy: Anatomy,
) -> Tensor:
    """DoRA's magnitudes of one matrix on another base (``rescaled``).

    Raises:
        DeltaError: the matrix is no linear map that both bases have in one shape.
    """
    weight = f"{module}.weight"
    old, new = old_base.get(weight), new_base.get(weight)
    outputs = 1 if anatomy.transposed else 0
    plain = old is not None and old.dim() == 2 and magnitude.shape == old.shape[outputs : outputs + 1]
    if not plain or old is None or new is None or new.shape != old.shape or weight == anatomy.word_embeddings:
        raise DeltaError(
            f"{name}: DoRA's magnitudes {list(magnitude.shape)} of {weight}, "
            f"{list(old.shape) if old is not None else 'which the old base lacks'}",
            why="They can only follow the lengths of the rows of a linear map that both bases have.",
            fix="merge it into its own base and move the merged model's full delta",
        )
    return rescaled(magnitude, old, new, anatomy.transposed)
