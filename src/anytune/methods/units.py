"""The units of a transformer's blocks (attention heads, feed-forward neurons, outputs), gates on them, their weights.

A gate is a number that a unit's output is multiplied by; where all gates are 1 the model is as it is, and the loss's
gradient by them says how much it leans on each unit. A unit's weights are those that lead to it and from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytune import compat
from anytune.methods.protocol import Batch
from anytune.models.anatomy import Anatomy

Kind = Literal["heads", "neurons", "outputs"]


@dataclass(frozen=True)
class Units:
    """The units of one kind in one part of one block.

    Attributes:
        key: a name for them: the part's module and the kind.
        module: the linear map that is gated, by its name in the model.
        gated: its "input" (heads, neurons) or its "output".
        count: of units.
        size: entries of that input or output that belong to one unit, side by side.
        weights: (name, dimension) of the weights that lead to the units or from them, along that dimension.
    """

    key: str
    module: str
    gated: Literal["input", "output"]
    count: int
    size: int
    weights: tuple[tuple[str, int], ...]


def units_of(model: nn.Module, anatomy: Anatomy, kinds: Sequence[Kind]) -> list[Units]:
    """All units of these kinds, block by block.

    Of each attention the last linear map reads the heads side by side; of each feed-forward part the last one reads
    the neurons and gives the block's outputs.
    """
    names = {module: name for name, module in model.named_modules()}
    config: Any = model.config
    found: list[Units] = []
    for stack, blocks in anatomy.block_stacks(model):
        for block in blocks:
            for part in stack.attention if "heads" in kinds else ():
                maps = _linear_maps(block.get_submodule(part), names)
                heads = config.num_attention_heads
                found.append(_inner(f"{names[block]}.{part}.heads", maps, heads))
            maps = [one for part in stack.feed_forward for one in _linear_maps(block.get_submodule(part), names)]
            last, module = next(reversed(maps))
            where = f"{names[block]}.{stack.feed_forward[-1]}"
            if "neurons" in kinds:
                found.append(_inner(f"{where}.neurons", maps, None))
            if "outputs" in kinds:
                rows = module.weight.shape[_along_outputs(module)]
                found.append(Units(f"{where}.outputs", last, "output", rows, 1, _made_by(last, module)))
    return found


def _linear_maps(part: nn.Module, names: Mapping[nn.Module, str]) -> list[tuple[str, Any]]:
    return [(names[module], module) for module in part.modules() if isinstance(module, compat.linear_types())]


def _along_outputs(module: Any) -> int:
    """The dimension of a map's weight that its outputs lie along: GPT-2's maps are stored as [in, out]."""
    return 0 if isinstance(module, nn.Linear) else 1


def _made_by(name: str, module: Any) -> tuple[tuple[str, int], ...]:
    """A map's weights along its outputs."""
    weight = (f"{name}.weight", _along_outputs(module))
    return (weight,) if module.bias is None else (weight, (f"{name}.bias", 0))


def _inner(key: str, maps: list[tuple[str, Any]], count: int | None) -> Units:
    """The units that the last of these maps reads and the others make; None for one unit an input."""
    *others, (last, module) = maps
    reads = 1 - _along_outputs(module)
    width = module.weight.shape[reads]
    count = count or width
    weights = [(f"{last}.weight", reads)]
    for name, other in others:
        length = other.weight.shape[_along_outputs(other)]
        if length % width == 0 or width % length == 0:
            weights.extend(_made_by(name, other))
    return Units(key, last, "input", count, width // count, tuple(weights))


def spread(values: Tensor, size: int, length: int) -> Tensor:
    """A value for each unit, as one for each of ``length`` entries of a weight's dimension.

    Args:
        values: ``[count]``.
        size: entries of a unit, side by side.
        length: ``count * size``; a multiple of it where several maps are one (queries, keys and values side by side);
            a part of it where a key's head serves several heads: it has the largest of their values.
    """
    whole = len(values) * size
    if length < whole:
        values = values.view(length // size, -1).amax(dim=1)
    each = values.repeat_interleave(size)
    return each.repeat(max(1, length // whole))


@contextmanager
def gated(model: nn.Module, units: Sequence[Units], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, every unit's output is multiplied by its gate.

    Args:
        model: the model that the units are of.
        units: those to gate; a key without gates is left alone.
        gates: by key, ``[count]``; gradients flow into them.
    """
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for one in units:
            if one.key not in gates:
                continue
            module, hook = modules[one.module], _gate(gates[one.key], one)
            handle = (
                module.register_forward_pre_hook(lambda _, given, hook=hook: (hook(given[0]), *given[1:]))
                if one.gated == "input"
                else module.register_forward_hook(lambda _, given, made, hook=hook: hook(made))
            )
            hooks.callback(handle.remove)
        yield


def _gate(gates: Tensor, one: Units) -> Callable[[Tensor], Tensor]:
    return lambda values: values * gates.repeat_interleave(one.size).to(values.dtype)


def gate_gradients(
    model: nn.Module, units: Sequence[Units], batches: Iterable[Batch], loss: Callable[[Batch], Tensor]
) -> dict[str, Tensor]:
    """The gradient of a mean loss by gates of ones, ``[count]`` for each key.

    Args:
        model: in the mode to measure in; its ``.grad`` stay as they are.
        units: whose gates.
        batches: on the model's device, each with its ``num_items``.
        loss: of a batch, a mean over its items.
    """
    like = next(model.parameters())
    sums = {one.key: torch.zeros(one.count, dtype=like.dtype, device=like.device) for one in units}
    items = 0
    for batch in batches:
        gates = {key: torch.ones_like(values).requires_grad_() for key, values in sums.items()}
        with gated(model, units, gates):
            found = torch.autograd.grad(loss(batch), list(gates.values()), allow_unused=True)
        for values, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                values.add_(gradient, alpha=batch["num_items"])
        items += batch["num_items"]
    return {key: values / max(1, items) for key, values in sums.items()}
