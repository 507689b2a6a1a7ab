"""Which weights a method that works on matrices takes: the linear maps of a model, by where they stand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from anytune import compat
from anytune.models.anatomy import Anatomy

#: "all": the weights of every linear map that is trained (blocks, pooler, head); "backbone": those of the blocks;
#: "attention", "feed_forward": of these parts of the blocks.
Include = Literal["all", "backbone", "attention", "feed_forward"]


def chosen_weights(model: nn.Module, anatomy: Anatomy, include: Include = "all") -> dict[str, nn.Parameter]:
    """Trainable weights of linear maps by their name in ``model``, each once, in the model's order.

    Biases, layer norms and embeddings are never among them, nor is a matrix that an embedding shares. Of a model that
    PEFT wraps, the adapter's matrices are what is trained, so they are what is chosen. Only floating-point weights
    are: a quantised base's matrices are not.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    inside = None if include == "all" else _parts(model, anatomy, include)
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, compat.linear_types()) or not isinstance(weight, nn.Parameter):
            continue
        if not weight.requires_grad or not weight.is_floating_point() or id(weight) in embedded | seen:
            continue
        if inside is None or id(module) in inside:
            found[f"{name}.weight"] = weight
            seen.add(id(weight))
    return found


def transposed_names(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Those of the weights that are stored as [in, out] (GPT-2's maps); all others are [out, in]."""
    modules = ((name, model.get_submodule(name.removesuffix(".weight"))) for name in names)
    return frozenset(name for name, module in modules if not isinstance(module, nn.Linear))


def _parts(model: nn.Module, anatomy: Anatomy, include: Include) -> set[int]:
    """The modules inside the wanted parts of every block."""
    found: set[int] = set()
    for stack, blocks in anatomy.block_stacks(model):
        wanted = {"backbone": ("",), "attention": stack.attention, "feed_forward": stack.feed_forward}[include]
        for block in blocks:
            for part in wanted:
                found |= {id(inner) for inner in block.get_submodule(part).modules()}
    return found
